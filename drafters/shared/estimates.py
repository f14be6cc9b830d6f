"""Estimate the probability that a drafted node is right if its parent is right.

The estimate depends on the node's depth, its rank among its siblings, and the drafter's confidence in it. It is learnt
while text is generated: every proposal is compared with the tokens that followed, including nodes that were never
verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from specdec.trees.tree import PAD, TokenTree

SILENT = -1.0  # confidence of a drafter that gives none
EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # limits between classes of confidence
# P(right) per class before anything is learnt: 0.5 if silent, else about the middle of the class
PRIOR = np.array([0.5, 0.001, 0.006, 0.02, 0.06, 0.15, 0.27, 0.42, 0.57, 0.72, 0.85, 0.94, 0.98])
DEPTHS, RANKS = 16, 4  # deeper nodes share the cells of the deepest, later siblings those of the last rank
TRUST = 10.0  # weight of the coarser estimate, in observations
MEMORY = 0.995  # the counts decay by this factor per judged proposal, so about the last 200 count


class Estimates:
    """Count tries and hits in every cell (depth, rank, class of confidence).

    Sparse cells back off to (confidence, depth), then to confidence, then to the drafter's own probability (`PRIOR`).

    Args:
        memory: factor by which the counts decay when a proposal is judged, in (0, 1].
    """

    def __init__(self, memory: float = MEMORY) -> None:
        self._memory = memory
        self._counts = np.zeros((2, DEPTHS * RANKS * len(PRIOR)))  # tried, right
        self._rates: np.ndarray | None = None

    def rates(self) -> np.ndarray:
        """Return P(right | parent right) for every cell."""
        if self._rates is None:
            tried, right = self._counts.reshape(2, DEPTHS, RANKS, len(PRIOR))
            rates = PRIOR
            for axes in ((0, 1), 1, ()):
                rates = (right.sum(axes, keepdims=True) + TRUST * rates) / (tried.sum(axes, keepdims=True) + TRUST)
            self._rates = rates.ravel()
        return self._rates

    def learn(self, proposal: Proposal, came: Sequence[int]) -> None:
        """Count one proposal.

        Args:
            proposal: the tree of one row.
            came: the known tokens that followed the proposal's root.
        """
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
class TreeLayout:
    """The shape of a tree, without its tokens.

    Args:
        children: children of each node.
        parents: parent of each node, -1 for the root and padding.
        depth: depth of each node, 0 for the root and padding.
        levels: nodes at depth 1, 2, ...
        base: first cell of each node's (depth, rank): the cell of silent confidence.
    """

    children: list[list[int]]
    parents: np.ndarray
    depth: np.ndarray
    levels: list[np.ndarray]
    base: np.ndarray

    @classmethod
    @lru_cache(maxsize=256)  # the same shapes return step after step
    def of(cls, parents: tuple[int, ...]) -> TreeLayout:
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
    """The tree that a drafter proposed for one row.

    `cells` holds the index of the `Estimates` cell in which each node is counted.
    """

    def __init__(self, tokens: Sequence[int], parents: Sequence[int], confidence: Sequence[float]) -> None:
        self.tokens, self.parents, self.confidence = tokens, parents, confidence
        self.shape = TreeLayout.of(tuple(parents))
        self.cells = self.shape.base + np.searchsorted(EDGES, confidence, side="right")

    @classmethod
    def rows(cls, tree: TokenTree) -> list[Proposal]:
        """Return one proposal per row of a batch."""
        sure = torch.full(tree.tokens.shape, SILENT) if tree.confidence is None else tree.confidence
        parts: tuple[Tensor, ...] = (tree.tokens, tree.parents, sure)
        return [cls(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]

    def gains(self, rates: np.ndarray) -> np.ndarray:
        """Return the probability that each node is accepted, which is its gain in tokens per step.

        The root and padding gain 0.
        """
        shape = self.shape
        gains: np.ndarray = rates[self.cells] * (shape.depth > 0)
        gains[0] = 1.0
        for level in shape.levels:
            gains[level] *= gains[shape.parents[level]]
        gains[0] = 0.0  # the root is already text
        return gains


class Pending:
    """Proposals for one text that cannot be judged yet, because the tokens after them are not known."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Proposal]] = []  # (length of the text when the proposal was made, proposal)

    def add(self, proposal: Proposal, length: int) -> None:
        if proposal.shape.levels:
            self._waiting.append((length, proposal))

    def judge(self, text: Sequence[int], estimates: Estimates, over: bool = False) -> None:
        """Learn from every proposal whose following tokens are known, or from all if the text is over."""
        waiting = []
        for length, proposal in self._waiting:
            if over or len(text) - length >= len(proposal.shape.levels):
                estimates.learn(proposal, text[length:])
            else:
                waiting.append((length, proposal))
        self._waiting = waiting
