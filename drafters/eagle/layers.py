"""Run the layers of an EAGLE head, with their entries in a cache of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from drafters.eagle.head import EagleHead
from specdec.decoding.protocols import DraftState, Session
from specdec.model.block import Block, TargetOutput
from specdec.model.runtime import linear
from specdec.model.runtime.storage import STORED
from specdec.model.target import PREFILL_CHUNK, TargetModel
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree


class EagleLayers:
    """The layers of a head, and the cache of their entries.

    The cache keeps only entries of the committed text, made of the target's own hidden states. Drafted entries, made of
    stand-ins, are dropped after every step; accepted ones are computed again.

    Args:
        head: the head.
        target: the model to draft for.
        storage: as in `specdec.model.runtime.linear`.
    """

    def __init__(self, head: EagleHead, target: TargetModel, storage: str = STORED) -> None:
        head = head.in_precision_of(target)
        self._layers = head.student.as_target(target, "eagle", storage, prove=False)  # they read joined entries
        self._join = linear(head.join.weight, fast=target.runtime is not None, storage=storage)
        self._embed = target.model.get_input_embeddings()

    def start(self, session: Session, drafted: int = 0) -> None:
        """Begin a batch.

        Args:
            session: the batch.
            drafted: cache slots for drafted entries, per row.
        """
        self._cache = self._layers.lend_cache(self, len(session.rows), session.capacity + drafted)

    def read_text(self, state: DraftState) -> TargetOutput:
        """Commit an entry for every committed token without one; the last is that of the root.

        Each node kept in the step before gives one entry: its hidden state and the token after it.

        Returns logits and hidden state at the root. Both are undefined for finished rows.
        """
        counts = state.kept.counts
        width, device = max(counts), self._layers.device
        new = [list(row[len(row) - count :]) for row, count in zip(state.rows, counts, strict=True)]
        tokens = on_device([row + [0] * (width - len(row)) for row in new], device)
        entering = self._entries(tokens, state.kept.hidden[:, :width])
        logits = hidden = entering.new_empty(())
        for begin in range(0, width, PREFILL_CHUNK):
            part = entering[:, begin : begin + PREFILL_CHUNK]
            within = [min(max(count - begin, 0), part.shape[1]) for count in counts]
            inside = on_device(within, device)
            ends = (inside[:, None] - 1).clamp(min=0)
            order = torch.arange(part.shape[1], device=device)
            there = order < inside[:, None].clamp(min=1)  # a row without entries here reads one that is not kept
            block = Block.chain(self._cache, torch.where(there, 0, PAD), ends)
            out = self._layers.halves.upper(self._cache, block, part, 0)
            self._cache.advance(within)
            reached = torch.ones_like(ends, dtype=torch.bool) if begin == 0 else inside[:, None] > 0
            at_end = out.hidden.gather(1, ends[..., None].expand(-1, -1, out.hidden.shape[-1]))
            logits, hidden = out.logits.where(reached[..., None], logits), at_end.where(reached[..., None], hidden)
        return TargetOutput(logits, hidden)

    def read_level(self, known: TokenTree, level: int, hidden: Float[Tensor, "batch read dim"]) -> TargetOutput:
        """Read the nodes of the last level, each joined with the stand-in after its parent.

        Args:
            known: the tree so far.
            level: number of nodes in the last level.
            hidden: stand-ins after the nodes of the levels before.
        """
        parents = known.parents[:, -level:].clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        entering = self._entries(known.tokens[:, -level:], hidden.gather(1, parents))
        return self._layers.halves.upper(self._cache, Block.below_root(self._cache, known, level), entering, 0)

    def _entries(self, tokens: Tensor, before: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new dim"]:
        joined: Tensor = self._join(torch.cat([self._embed(tokens.clamp(min=0)), before], -1))
        return joined
