"""A smaller causal LM with the same tokens drafts a chain or a tree (arXiv 2211.17192, 2305.09781).

Its KV cache holds the committed text; each step it is cropped to that, fed what is missing, and grown
level by level under a tree mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specdec.drafting import TreeShape
from specdec.models import load, require_same_tokens
from specdec.protocols import DraftState, Rows, Session
from specdec.target import TargetModel
from specdec.tree import TokenTree, histories


class DraftModel:
    """model: a loaded model, or a name for `specdec.models.load` with its options; widths, children: see
    `TreeShape` (at temperature 0, where q is one-hot, children are always the top-k)."""

    def __init__(
        self,
        model: TargetModel | str,
        widths: Sequence[int],
        children: str = "with_replacement",
        **load_options: Any,
    ) -> None:
        self.shape = TreeShape(widths, children)
        self.model = load(model, **load_options) if isinstance(model, str) else model

    @property
    def max_nodes(self) -> int:
        return self.shape.nodes

    def start(self, session: Session) -> None:
        require_same_tokens(session.target, self.model)
        self._sampling = session.sampling
        self._cache = self.model.new_cache(len(session.rows), session.capacity + self.max_nodes)
        self.model.prefill(self._cache, session.rows)
        self._fed_depth = 0  # levels of the last tree that went through the model

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        self._keep_accepted(state)
        at_root = self._feed_missing(state.rows)
        how = "top_k" if self._sampling.greedy else self.shape.children
        depth = max(0, min(self.shape.depth, max(state.room) - 1))

        def next_q(known: TokenTree, level: int) -> Tensor:
            logits = at_root if known.nodes == 1 else self._read_level(known, level)
            return self._q(logits, known, state.rows)

        self._fed_depth = max(depth - 1, 0)
        root = torch.tensor([row[-1] for row in state.rows], device=self.model.device)
        return self.shape.grow(root, next_q, state.draws(self.max_nodes), depth, how)

    def _read_level(self, known: TokenTree, level: int) -> Tensor:
        """Logits [batch level vocab] after the last level's nodes; the levels before are cached.

        The root is committed, so the block begins with the nodes of depth 1. Padding is read too, at the
        place its node would have: shapes stay static, and nobody sees it.
        """
        shape = TokenTree(
            torch.zeros_like(known.tokens), self.shape.parents[: known.nodes].to(known.tokens).expand_as(known.tokens)
        )
        positions = self._cache.lengths[:, None] + shape.depth[:, 1:] - 1
        mask = shape.ancestor_mask[:, -level:, 1:]
        return self.model.forward(self._cache, known.tokens[:, -level:], positions, mask).logits

    def _q(self, logits: Tensor, known: TokenTree, rows: Rows) -> Tensor:
        """q after each node of the known tree's last level, from its logits [batch level vocab].

        At temperature 0 the scores, which rank the tokens as the one-hot q would not.
        """
        batch, level, vocab = logits.shape
        before = None
        if self._sampling.needs_history:
            every = histories(known, rows)
            before = [
                history
                for r in range(batch)
                for history in every[(r + 1) * known.nodes - level : (r + 1) * known.nodes]
            ]
        q = self._sampling.scores if self._sampling.greedy else self._sampling.probabilities
        return q(logits.reshape(-1, vocab), before).view(batch, level, vocab)

    def _keep_accepted(self, state: DraftState) -> None:
        """Commit the accepted nodes the model has already read: all but those of the last level."""
        if self._fed_depth == 0:
            return
        # block entry i of the cache is tree node i + 1: the root was committed before
        path = state.verdict.path[:, 1 : 1 + self._fed_depth] - 1
        grown = [len(row) - length for row, length in zip(state.rows, self._cache.host_lengths, strict=True)]
        counts = [min(max(new - 1, 0), self._fed_depth) for new in grown]
        self._cache.keep(path.clamp(min=-1), counts)

    def _feed_missing(self, rows: Rows) -> Tensor:
        """Read the committed tokens not yet cached, the root at least; logits [batch 1 vocab] at the root."""
        self._cache.crop([min(n, len(row) - 1) for n, row in zip(self._cache.host_lengths, rows, strict=True)])
        missing = [row[n:] for n, row in zip(self._cache.host_lengths, rows, strict=True)]
        return self.model.prefill(self._cache, missing).logits
