"""How often a drafted node is right where its parent is: by its depth, its rank among its siblings, and how sure the
drafter was of it. Learnt from the text as it is written: every proposal is held against what came, nodes that were
never verified too.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specdec.tree import PAD

SILENT = -1.0  # the confidence of a drafter that does not say
EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence, between its classes
PRIOR = np.array([0.5, 0.001, 0.006, 0.02, 0.06, 0.15, 0.27, 0.42, 0.57, 0.72, 0.85, 0.94, 0.98])  # taken at its word
DEPTHS, RANKS = 16, 4  # deeper nodes count as the deepest, later siblings as the last
TRUST = 10.0  # observations that a first guess is worth
MEMORY = 0.995  # of the counts, per judged proposal: what counts is about the last 200

Cell = tuple[int, int, int]  # depth - 1, rank, class of confidence


class Estimates:
    """Counts of tries and hits in every cell. A cell that has seen little is taken for what its class of confidence is
    at that depth, that for what the class is at any depth, and that for what the drafter says."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, DEPTHS, RANKS, len(PRIOR)))  # tried, right
        self._rates: np.ndarray | None = None

    def rates(self) -> np.ndarray:
        """P(right | parent right) [DEPTHS RANKS classes]."""
        if self._rates is None:
            self._rates = self._computed()
        return self._rates

    def _computed(self) -> np.ndarray:
        tried, right = self._counts
        rates = PRIOR
        for axes in ((0, 1), 1, ()):
            rates = (right.sum(axes, keepdims=True) + TRUST * rates) / (tried.sum(axes, keepdims=True) + TRUST)
        return rates

    def learn(self, proposal: Proposal, came: Sequence[int]) -> None:
        """came: the tokens that followed the proposal's root, as far as they are known."""
        self._counts *= MEMORY
        self._rates, node = None, 0
        for token in came:
            children = proposal.children[node]
            if not children:
                return
            for child in children:
                self._counts[0][proposal.cells[child]] += 1
            node = next((child for child in children if proposal.tokens[child] == token), PAD)
            if node == PAD:
                return
            self._counts[1][proposal.cells[node]] += 1


@dataclass
class Proposal:
    """One row's tree, as the drafter proposed it. children, depth, cells: of each node."""

    tokens: Sequence[int]
    parents: Sequence[int]
    confidence: Sequence[float]
    children: list[list[int]] = field(init=False)
    depth: list[int] = field(init=False)
    cells: list[Cell] = field(init=False)

    def __post_init__(self) -> None:
        self.children = [[] for _ in self.tokens]
        self.depth, self.cells = [0] * len(self.tokens), [(0, 0, 0)] * len(self.tokens)
        for node in self.nodes:
            parent = self.parents[node]
            self.depth[node] = self.depth[parent] + 1
            rank = min(len(self.children[parent]), RANKS - 1)
            self.cells[node] = (min(self.depth[node], DEPTHS) - 1, rank, bisect(EDGES, self.confidence[node]))
            self.children[parent].append(node)

    @property
    def nodes(self) -> list[int]:
        """Those that are drafted, parents before children."""
        return [node for node, token in enumerate(self.tokens) if node and token != PAD]

    def gains(self, rates: np.ndarray) -> list[float]:
        """Of each node, the probability that it is accepted: what it adds to the tokens of a step."""
        gains = [1.0] + [0.0] * (len(self.tokens) - 1)
        for node in self.nodes:
            gains[node] = gains[self.parents[node]] * float(rates[self.cells[node]])
        return gains
