"""A head's layers at work: its entries, one behind the other, in a cache of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from drafters.eagle.head import EagleHead
from specdec.decoding.protocols import DraftState, Session
from specdec.model.runtime import linear
from specdec.model.runtime.quantised import STORED
from specdec.model.target import PREFILL_CHUNK, TargetModel, TargetOutput
from specdec.trees.tree import PAD, TokenTree


class EagleLayers:
    """The cache holds the entries of the committed text, made of the target's own hidden states: drafted entries, made
    of stand-ins, are forgotten after every step, and those that were accepted are made anew.

    storage: as in `specdec.model.runtime.linear`.
    """

    def __init__(self, head: EagleHead, target: TargetModel, storage: str = STORED) -> None:
        head = head.in_precision_of(target)
        fast = target.runtime is not None
        runtime = "stock" if target.device.type == "cpu" and not fast else "auto"
        model, kernel = head.student.as_model(target, storage), target.kernel.name
        # fed with other entries than embeddings, layers of a proven target have no stock forward to be held against
        self._layers = TargetModel(model, name="eagle", kernel=kernel, runtime=runtime, prove=False)
        self._join = linear(head.join.weight, fast=fast, storage=storage)
        self._embed = target.model.get_input_embeddings()

    def start(self, session: Session, drafted: int = 0) -> None:
        """drafted: room for how many entries of a draft."""
        self._cache = self._layers.lend_cache(self, len(session.rows), session.capacity + drafted)

    def read_text(self, state: DraftState) -> TargetOutput:
        """Commit an entry for every token of the text that has none, the root the last: each node kept in the step
        before brings its hidden state and the token after it. Logits and hidden state at the root."""
        counts = (state.kept.path >= 0).sum(1).tolist()  # none where a row has finished
        width, device = max(counts), self._layers.device
        new = [list(row[len(row) - count :]) for row, count in zip(state.rows, counts, strict=True)]
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)
        entering = self._entries(tokens, state.kept.hidden[:, :width])
        logits = hidden = entering.new_empty(())
        for begin in range(0, width, PREFILL_CHUNK):
            part = entering[:, begin : begin + PREFILL_CHUNK]
            inside = torch.tensor([min(max(count - begin, 0), part.shape[1]) for count in counts], device=device)
            ends = (inside[:, None] - 1).clamp(min=0)
            order = torch.arange(part.shape[1], device=device)
            positions = self._cache.lengths[:, None] + order
            there = order < inside[:, None].clamp(min=1)  # one of a row that has none here, not to be kept
            out = self._layers.upper(self._cache, torch.where(there, 0, PAD), part, positions, None, 0, ends)
            self._cache.advance(inside.tolist())
            reached = torch.ones_like(ends, dtype=torch.bool) if begin == 0 else inside[:, None] > 0
            at_end = out.hidden.gather(1, ends[..., None].expand(-1, -1, out.hidden.shape[-1]))
            logits, hidden = out.logits.where(reached[..., None], logits), at_end.where(reached[..., None], hidden)
        return TargetOutput(logits, hidden)

    def read_level(self, known: TokenTree, level: int, hidden: Float[Tensor, "batch read dim"]) -> TargetOutput:
        """The last level's nodes, behind the stand-ins after their parents. The root is committed, so the block begins
        with the nodes of depth 1; padding is read too, and nobody sees it."""
        parents = known.parents[:, -level:].clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        entering = self._entries(known.tokens[:, -level:], hidden.gather(1, parents))
        positions = self._cache.lengths[:, None] + (known.depth[:, 1:] - 1).clamp(min=0)
        tokens, mask = known.tokens[:, -level:], known.ancestor_mask[:, -level:, 1:]
        return self._layers.upper(self._cache, tokens, entering, positions, mask, 0)

    def _entries(self, tokens: Tensor, before: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new dim"]:
        joined: Tensor = self._join(torch.cat([self._embed(tokens.clamp(min=0)), before], -1))
        return joined
