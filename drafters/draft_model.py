"""A smaller causal LM with the same tokens drafts a chain or a tree (arXiv 2211.17192, 2305.09781).

Its KV cache holds the committed text; each step it is cropped to that, fed what is missing, and grown
level by level under a tree mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor

from specdec.errors import InputError
from specdec.models import load, require_same_tokens
from specdec.protocols import DraftState, Rows, Session
from specdec.sampling import Draws
from specdec.target import TargetModel
from specdec.tree import TokenTree, histories


class DraftModel:
    """model: a loaded model, or a name for `specdec.models.load`; widths: children per node at each depth
    ([1, 1, 1, 1] is a chain of four, [3, 2] a tree of 3 + 6 nodes); sampled: draw children from q,
    independently (otherwise the top-k, and always at temperature 0, where q is one-hot).
    """

    def __init__(
        self, model: TargetModel | str, widths: Sequence[int], sampled: bool = True, **load_options: Any
    ) -> None:
        if not widths or min(widths) < 1:
            raise InputError(
                "drafter.widths", expected="a list of integers >= 1", got=list(widths), fix="try [1,1,1,1]"
            )
        self.model = load(model, **load_options) if isinstance(model, str) else model
        self.sampled = sampled
        self._levels = list(accumulate(widths, mul))  # nodes at depth 1, 2, ...
        self._widths = list(widths)
        parents = torch.arange(1 + sum(self._levels)).sub(1)
        start, before = 1, 0
        for width, level in zip(self._widths, self._levels, strict=True):
            parents[start : start + level] = before + torch.arange(level) // width
            start, before = start + level, start
        self._parents = parents

    @property
    def max_nodes(self) -> int:
        return len(self._parents)

    def start(self, session: Session) -> None:
        require_same_tokens(session.target, self.model)
        self._sampling = session.sampling
        self._sample_children = self.sampled and not session.sampling.greedy
        self._cache = self.model.new_cache(len(session.rows), session.capacity + self.max_nodes)
        self.model.prefill(self._cache, session.rows)
        self._fed_depth = 0  # levels of the last tree that went through the model

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        self._keep_accepted(state)
        logits = self._feed_missing(state.rows)
        depth = max(0, min(len(self._levels), max(state.room) - 1))
        nodes = 1 + sum(self._levels[:depth])
        draws = state.draws(nodes)
        device = self.model.device
        parents = self._parents[:nodes].to(device).expand(len(state.rows), -1)
        tokens = torch.tensor([[row[-1]] for row in state.rows], device=device)
        whole = TokenTree(torch.zeros_like(parents), parents)  # the shape, before its tokens are known
        q: list[Tensor] = []
        for level in range(depth):
            known = TokenTree(tokens, parents[:, : tokens.shape[1]])
            q.append(self._probabilities(logits, known, state.rows))
            children = self._children(q[-1], self._widths[level], draws, tokens.shape[1])
            tokens = torch.cat([tokens, children], 1)
            if level + 1 < depth:
                mask = whole.ancestor_mask[:, known.nodes : tokens.shape[1], 1 : tokens.shape[1]]
                positions = self._cache.lengths[:, None] + whole.depth[:, 1 : tokens.shape[1]] - 1
                logits = self.model.forward(self._cache, children, positions, mask).logits
        self._fed_depth = max(depth - 1, 0)
        if not self._sample_children or depth == 0:
            return TokenTree(tokens, parents)
        leaves = torch.zeros_like(q[-1][:, :1]).expand(-1, nodes - sum(level.shape[1] for level in q), -1)
        return TokenTree(tokens, parents, torch.cat([*q, leaves], 1))

    def _children(self, q: Tensor, width: int, draws: Draws, first: int) -> Tensor:
        """Tokens [batch parents * width] of the next level; its nodes are numbered from `first`."""
        batch, count, _ = q.shape
        if not self._sample_children:
            return q.topk(width, dim=-1).indices.reshape(batch, -1)
        columns = [draws.categorical(q[:, child // width], first + child) for child in range(count * width)]
        return torch.stack(columns, 1)

    def _probabilities(self, logits: Tensor, known: TokenTree, rows: Rows) -> Tensor:
        """q after each node of the last known level, from its logits [batch level vocab].

        At temperature 0 the ranking of all tokens is needed (for top-k children), not the one-hot q."""
        batch, level, vocab = logits.shape
        before = None
        if self._sampling.needs_history:
            per_row = [histories(known, rows)[i : i + known.nodes] for i in range(0, batch * known.nodes, known.nodes)]
            before = [history for row in per_row for history in row[-level:]]
        flat = logits.reshape(-1, vocab)
        ranked = (
            self._sampling.scores(flat, before) if self._sampling.greedy else self._sampling.probabilities(flat, before)
        )
        return ranked.view(batch, level, vocab)

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
