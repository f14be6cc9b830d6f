"""Turn the residual stream at the exit layer into logits over the target's tokens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drafters.early_exit.adapter import ExitAdapter
from specdec.decoding.grow_fixed import already_read
from specdec.decoding.protocols import Kept
from specdec.model.block import Block
from specdec.model.runtime import linear
from specdec.model.students import output_rows
from specdec.model.target import PREFILL_CHUNK, TargetModel
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree


@runtime_checkable
class Exit(Protocol):
    """The part of an early-exit drafter after the exit layer.

    `vocabulary` holds the target's ids of the tokens it can guess, ascending; None for all tokens.
    """

    vocabulary: Int[Tensor, " rows"] | None

    def start(self, batch: int, capacity: int) -> None:
        """Begin a batch; `capacity` as in `Session`."""
        ...

    def catch_up(self, kept: Kept) -> None:
        """Read the nodes that the step before kept, or the prompt."""
        ...

    def logits(self, known: TokenTree, residual: Float[Tensor, "batch level dim"]) -> Float[Tensor, "batch level rows"]:
        """Return logits after the nodes of the last level.

        Args:
            known: the tree read so far.
            residual: residual stream of the last level at the exit layer.
        """
        ...

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        """Remember the order in which the nodes of the proposed tree were read, -1 for those that were not."""
        ...


class PlainExit:
    """The target's own final norm and output layer."""

    vocabulary: Int[Tensor, " rows"] | None = None

    def __init__(self, target: TargetModel) -> None:
        self._target = target

    def start(self, batch: int, capacity: int) -> None:
        """Nothing to remember."""

    def catch_up(self, kept: Kept) -> None:
        """Nothing to remember."""

    def logits(
        self, known: TokenTree, residual: Float[Tensor, "batch level dim"]
    ) -> Float[Tensor, "batch level vocab"]:
        return self._target.halves.read_out(residual)

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        """Nothing to remember."""


class AdaptedExit:
    """A trained adapter.

    If it has layers, their keys and values are in a cache of their own, which holds the committed text without the
    root.
    """

    def __init__(self, adapter: ExitAdapter, target: TargetModel) -> None:
        self._adapter, self.vocabulary, self._device = adapter, adapter.vocabulary, target.device
        self._layers: TargetModel | None = None
        if adapter.student is None:
            self._output = linear(*output_rows(target, adapter.vocabulary), fast=target.runtime is not None)
        else:
            # they read the residual stream instead of embeddings
            self._layers = adapter.student.as_target(target, "adapter", prove=False)

    def start(self, batch: int, capacity: int) -> None:
        self._read: Tensor | None = None
        if self._layers is not None:
            self._cache = self._layers.lend_cache(self, batch, capacity)

    def catch_up(self, kept: Kept) -> None:
        """Keep the accepted nodes that were read, and read the other accepted ones (leaves, other drafters' nodes)."""
        if self._layers is None:
            return
        counts = kept.counts
        had = [0] * len(counts)
        if self._read is not None:
            slots, had = already_read(self._read, kept.path)
            self._cache.keep(slots, had)
        missing = [n - m for n, m in zip(counts, had, strict=True)]
        assert kept.residual is not None
        width, order = max(missing), torch.arange(max(missing), device=self._device)
        at = on_device(had, self._device)[:, None] + order
        at = at.clamp(max=kept.residual.shape[1] - 1)[..., None].expand(-1, -1, kept.residual.shape[-1])
        residual = kept.residual.gather(1, at)
        for begin in range(0, width, PREFILL_CHUNK):
            part = residual[:, begin : begin + PREFILL_CHUNK]
            none = torch.zeros(len(part), 0, dtype=torch.long, device=self._device)  # no logits are needed
            new = [min(max(count - begin, 0), part.shape[1]) for count in missing]
            there = order[: part.shape[1]] < on_device(new, self._device)[:, None]
            tokens = torch.where(there, 0, PAD)  # only marks padding: the residual stream replaces the embeddings
            self._layers.halves.upper(self._cache, Block.chain(self._cache, tokens, none), part, 0)
            self._cache.advance(new)

    @torch.inference_mode()
    def logits(self, known: TokenTree, residual: Float[Tensor, "batch level dim"]) -> Float[Tensor, "batch level rows"]:
        level = residual.shape[1]
        if self._layers is None:
            logits: Tensor = self._output(self._adapter(residual))
            return logits
        return self._layers.halves.upper(self._cache, Block.of_tree(self._cache, known, level), residual, 0).logits

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        self._read = read
