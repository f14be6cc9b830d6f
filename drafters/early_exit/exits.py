"""From the residual stream at the exit layer to logits over the target's tokens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drafters.early_exit.adapter import ExitAdapter
from specdec.decoding.grow_fixed import already_read
from specdec.decoding.protocols import Kept
from specdec.model.runtime import linear
from specdec.model.students import output_rows
from specdec.model.target import PREFILL_CHUNK, TargetModel
from specdec.trees.tree import PAD, TokenTree


@runtime_checkable
class Exit(Protocol):
    """vocabulary: the target's ids of the tokens it may guess, ascending; None: all."""

    vocabulary: Int[Tensor, " rows"] | None

    def start(self, batch: int, capacity: int) -> None:
        """A new batch; capacity as in `Session`."""
        ...

    def catch_up(self, kept: Kept) -> None:
        """Take notice of what was kept of the step before, or of the prompt."""
        ...

    def logits(self, known: TokenTree, stream: Float[Tensor, "batch level dim"]) -> Float[Tensor, "batch level rows"]:
        """After the last level of the tree read so far, whose stream is given."""
        ...

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        """Which nodes of the tree that is now proposed were read, and in what order; -1: not."""
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

    def logits(self, known: TokenTree, stream: Float[Tensor, "batch level dim"]) -> Float[Tensor, "batch level vocab"]:
        return self._target.read_out(stream)

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        """Nothing to remember."""


class AdaptedExit:
    """A trained adapter; where it has layers, with their keys and values in a cache of its own, which holds the
    committed text but its root."""

    def __init__(self, adapter: ExitAdapter, target: TargetModel) -> None:
        fast = target.runtime is not None
        self._adapter, self.vocabulary, self._device = adapter, adapter.vocabulary, target.device
        self._layers: TargetModel | None = None
        if adapter.student is None:
            self._output = linear(*output_rows(target, adapter.vocabulary), fast=fast)
        else:
            runtime = "auto" if fast else "stock"
            model = adapter.student.as_model(target)
            # fed with other entries than embeddings, layers of a proven target have no stock forward to be held against
            self._layers = TargetModel(model, name="adapter", kernel=target.kernel.name, runtime=runtime, prove=False)

    def start(self, batch: int, capacity: int) -> None:
        self._read: Tensor | None = None
        if self._layers is not None:
            self._cache = self._layers.lend_cache(self, batch, capacity)

    def catch_up(self, kept: Kept) -> None:
        """Keep what was read and accepted, and read what was accepted beside it (leaves, other drafters' nodes)."""
        if self._layers is None:
            return
        counts = (kept.path >= 0).sum(1).tolist()
        had = [0] * len(counts)
        if self._read is not None:
            places, had = already_read(self._read, kept.path)
            self._cache.keep(places, had)
        missing = [n - m for n, m in zip(counts, had, strict=True)]
        assert kept.residual is not None
        width, order = max(missing), torch.arange(max(missing), device=self._device)
        at = torch.tensor(had, device=self._device)[:, None] + order
        at = at.clamp(max=kept.residual.shape[1] - 1)[..., None].expand(-1, -1, kept.residual.shape[-1])
        stream = kept.residual.gather(1, at)
        for begin in range(0, width, PREFILL_CHUNK):
            part = stream[:, begin : begin + PREFILL_CHUNK]
            positions = self._cache.lengths[:, None] + order[: part.shape[1]]
            none = torch.zeros(len(part), 0, dtype=torch.long, device=self._device)  # nobody asks for logits
            new = [min(max(count - begin, 0), part.shape[1]) for count in missing]
            there = order[: part.shape[1]] < torch.tensor(new, device=self._device)[:, None]
            tokens = torch.where(there, 0, PAD)  # the stream takes their place
            self._layers.upper(self._cache, tokens, part, positions, None, 0, none)
            self._cache.advance(new)

    @torch.inference_mode()
    def logits(self, known: TokenTree, stream: Float[Tensor, "batch level dim"]) -> Float[Tensor, "batch level rows"]:
        level = stream.shape[1]
        if self._layers is None:
            logits: Tensor = self._output(self._adapter(stream))
            return logits
        positions = self._cache.lengths[:, None] + known.depth
        tokens, mask = known.tokens[:, -level:], known.ancestor_mask[:, -level:]
        return self._layers.upper(self._cache, tokens, stream, positions, mask, 0).logits

    def remember(self, read: Int[Tensor, "batch nodes"]) -> None:
        self._read = read
