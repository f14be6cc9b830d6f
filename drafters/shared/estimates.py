"""How often a drafted node is right where its parent is: by its depth, its rank among its siblings, and how sure the
drafter was of it. Learnt from the text as it is written: every proposal is held against what came, nodes that were
never verified too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from specdec.trees.tree import PAD, TokenTree

SILENT = -1.0  # the confidence of a drafter that does not say
EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence, between its classes
PRIOR = np.array([0.5, 0.001, 0.006, 0.02, 0.06, 0.15, 0.27, 0.42, 0.57, 0.72, 0.85, 0.94, 0.98])  # taken at its word
DEPTHS, RANKS = 16, 4  # deeper nodes count as the deepest, later siblings as the last
TRUST = 10.0  # observations that a first guess is worth
MEMORY = 0.995  # of the counts, per judged proposal: what counts is about the last 200


class Estimates:
    """Counts of tries and hits in every cell (depth, rank, class of confidence). A cell that has seen little is taken
    for what its class of confidence is at that depth, that for what the class is at any depth, and that for what the
    drafter says. memory: what is left of the counts when the next proposal is judged."""

    def __init__(self, memory: float = MEMORY) -> None:
        self._memory = memory
        self._counts = np.zeros((2, DEPTHS * RANKS * len(PRIOR)))  # tried, right
        self._rates: np.ndarray | None = None

    def rates(self) -> np.ndarray:
        """P(right | parent right) of every cell."""
        if self._rates is None:
            tried, right = self._counts.reshape(2, DEPTHS, RANKS, len(PRIOR))
            rates = PRIOR
            for axes in ((0, 1), 1, ()):
                rates = (right.sum(axes, keepdims=True) + TRUST * rates) / (tried.sum(axes, keepdims=True) + TRUST)
            self._rates = rates.ravel()
        return self._rates

    def learn(self, proposal: Proposal, came: Sequence[int]) -> None:
        """came: the tokens that followed the proposal's root, as far as they are known."""
        self._counts *= self._memory
        self._rates, node = None, 0
        tried, right = self._counts
        for token in came:
            children = proposal.shape.children[node]
            if not children:
                return
            np.add.at(tried, proposal.cells[children], 1)  # late siblings share a cell
            node = next((child for child in children if proposal.tokens[child] == token), PAD)
            if node == PAD:
                return
            right[proposal.cells[node]] += 1


@dataclass(frozen=True, eq=False)
class Shape:
    """What a tree is whatever its tokens. children: of each node; parents, depth: of each node (depth 0: the root and
    padding); levels: the nodes at depth 1, 2, ...; base: each node's first cell, that of the silent class."""

    children: list[list[int]]
    parents: np.ndarray
    depth: np.ndarray
    levels: list[np.ndarray]
    base: np.ndarray

    @classmethod
    @lru_cache(maxsize=256)  # trees of one shape come back step after step
    def of(cls, parents: tuple[int, ...]) -> Shape:
        children: list[list[int]] = [[] for _ in parents]
        depth, base = np.zeros((2, len(parents)), dtype=np.int64)
        for node, parent in enumerate(parents):
            if parent != PAD:
                depth[node] = depth[parent] + 1
                rank = min(len(children[parent]), RANKS - 1)
                base[node] = (min(depth[node], DEPTHS) - 1) * RANKS + rank
                children[parent].append(node)
        levels = [np.flatnonzero(depth == d) for d in range(1, depth.max() + 1)]
        return cls(children, np.array(parents), depth, levels, base * len(PRIOR))


class Proposal:
    """One row's tree, as the drafter proposed it. cells: of each node, where `Estimates` counts it."""

    def __init__(self, tokens: Sequence[int], parents: Sequence[int], confidence: Sequence[float]) -> None:
        self.tokens, self.parents, self.confidence = tokens, parents, confidence
        self.shape = Shape.of(tuple(parents))
        self.cells = self.shape.base + np.searchsorted(EDGES, confidence, side="right")

    @classmethod
    def rows(cls, tree: TokenTree) -> list[Proposal]:
        """Of a batch, each row's."""
        sure = torch.full(tree.tokens.shape, SILENT) if tree.confidence is None else tree.confidence
        parts: tuple[Tensor, ...] = (tree.tokens, tree.parents, sure)
        return [cls(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]

    def gains(self, rates: np.ndarray) -> np.ndarray:
        """Of each node, the probability that it is accepted: what it adds to the tokens of a step. 0 for padding."""
        shape = self.shape
        gains: np.ndarray = rates[self.cells] * (shape.depth > 0)
        gains[0] = 1.0
        for level in shape.levels:
            gains[level] *= gains[shape.parents[level]]
        gains[0] = 0.0  # the root comes anyway
        return gains


class Pending:
    """Proposals for one text that wait for what follows them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Proposal]] = []  # with the length of the text when they were made

    def add(self, proposal: Proposal, length: int) -> None:
        if proposal.shape.levels:
            self._waiting.append((length, proposal))

    def judge(self, text: Sequence[int], estimates: Estimates, over: bool = False) -> None:
        """Learn from those whose text has been written; from all, if it is over."""
        waiting = []
        for length, proposal in self._waiting:
            if over or len(text) - length >= len(proposal.shape.levels):
                estimates.learn(proposal, text[length:])
            else:
                waiting.append((length, proposal))
        self._waiting = waiting
