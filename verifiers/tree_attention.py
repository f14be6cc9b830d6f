"""Score the whole tree in one forward of the target (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.protocols import Rows, Scores
from specdec.decoding.sampling import SamplingParams
from specdec.model.block import Block, TargetOutput
from specdec.model.cache import TreeCache
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree


class TreeAttention:
    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self._cache: TreeCache | None = None
        self._sampling = SamplingParams()
        self._exit_layer: int | None = None
        self._begun: list[Tensor] = []  # residual streams at the exit layer of the tree's first nodes

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int, exit_layer: int | None = None) -> Scores:
        self._sampling, self._exit_layer, self._begun = sampling, exit_layer, []
        self._cache = self.target.lend_cache(self, len(rows), capacity)
        out = self.target.prefill(self._cache, rows, exit_layer)
        return Scores(sampling.scores(out.logits[:, 0], rows)[:, None], out.hidden, sampling, out.residual)

    def begin(self, tree: TokenTree, rows: Rows, new: int) -> Float[Tensor, "batch new dim"]:
        assert self._cache is not None, "prefill() begins a batch"
        assert self._exit_layer is not None, "the batch was begun without an exit layer"
        block = Block.of_tree(self._cache, tree, new)
        self._begun.append(self.target.halves.lower(self._cache, block, self._exit_layer))
        return self._begun[-1]

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        assert self._cache is not None, "prefill() begins a batch"
        out = self.target.forward_tree(self._cache, tree) if self._exit_layer is None else self._resumed(tree, rows)
        return Scores(self._sampling.tree_scores(out.logits, tree, rows), out.hidden, self._sampling, out.residual)

    def _resumed(self, tree: TokenTree, rows: Rows) -> TargetOutput:
        """Run all nodes from the exit layer on. Nodes not read yet go through the first layers before."""
        assert self._cache is not None
        assert self._exit_layer is not None
        if left := tree.nodes - sum(residual.shape[1] for residual in self._begun):
            self.begin(tree, rows, left)
        residual, self._begun = torch.cat(self._begun, 1), []
        out = self.target.halves.upper(self._cache, Block.of_tree(self._cache, tree), residual, self._exit_layer)
        return TargetOutput(out.logits, out.hidden, residual)

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        assert self._cache is not None
        self._cache.keep(path, counts)
