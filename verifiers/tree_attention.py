"""The verifier: one target forward scores the whole tree (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from specdec.cache import TreeCache
from specdec.protocols import Rows, Scores
from specdec.sampling import SamplingParams
from specdec.target import TargetModel
from specdec.tree import TokenTree, histories

ROOM = 256  # a cache's capacity is a multiple of it, so that one serves many prompts


class TreeAttention:
    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self._cache: TreeCache | None = None
        self._sampling = SamplingParams()

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int) -> Scores:
        self._sampling = sampling
        if self._cache is not None and self._cache.fits(len(rows), capacity):
            self._cache.crop([0] * len(rows))  # the same addresses again: what was captured stays valid
        else:
            self._cache = self.target.new_cache(len(rows), -(-capacity // ROOM) * ROOM)
        out = self.target.prefill(self._cache, rows)
        return Scores(sampling.scores(out.logits[:, 0], rows)[:, None], out.hidden, sampling)

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        assert self._cache is not None, "prefill() begins a batch"
        out = self.target.forward_tree(self._cache, tree)
        before = histories(tree, rows) if self._sampling.needs_history else None
        logits = self._sampling.scores(out.logits.flatten(0, 1), before).view_as(out.logits)
        return Scores(logits, out.hidden, self._sampling)

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        assert self._cache is not None
        self._cache.keep(path, counts)
