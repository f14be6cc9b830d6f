"""Choosing nodes: of each step's proposals, those that bring more tokens than their time is worth.

A node is worth the probability that it is accepted, and costs what a verify with it takes longer. Time is worth what
it brings on the average: at a rate of r tokens a second, a node that adds more tokens than r times its seconds makes
the text faster, and one that adds fewer makes it slower. The rate is that of the text so far, so that the two find each
other (Dinkelbach's method for a ratio).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drafters.shared.estimates import Estimates, Pending, Proposal
from specdec.trees.tree import PAD

RATE_MEMORY = 0.95  # of tokens and seconds, per step: the rate is that of about the last twenty
FIRST_STEPS = 4.0  # of plain decoding, that a batch's rate begins with


class NodeChoice:
    """For the rows of one batch. lengths: of the prompts; seconds: of a verify of 1, 2, ... nodes a row; skips_padding:
    rows may differ in size at no cost; whole: all nodes stay, and are judged all the same."""

    def __init__(
        self,
        lengths: Sequence[int],
        seconds: np.ndarray,
        estimates: Estimates,
        *,
        skips_padding: bool,
        whole: bool = False,
    ) -> None:
        self._rows = [_Row(length) for length in lengths]
        self._seconds, self._extra = seconds, seconds - seconds[0]
        self._estimates, self._skips_padding, self._whole = estimates, skips_padding, whole
        self._tokens, self._spent = FIRST_STEPS * len(lengths), FIRST_STEPS * float(seconds[0])
        self.begun = False  # whether a step was made

    @property
    def rate(self) -> float:
        """Tokens a second, of late."""
        return self._tokens / self._spent

    def most(self, rows: int) -> float:
        """The largest worth there could be, in tokens: were every node of a chain right."""
        return float((rows * np.arange(len(self._extra)) - self.rate * self._extra).max())

    def read(self, texts: Sequence[Sequence[int]], room: Sequence[int]) -> None:
        """What became of the step before. texts: of each row, the prompt included; room: see `DraftState`."""
        emitted = sum(
            row.read(text, left, self._estimates) for row, text, left in zip(self._rows, texts, room, strict=True)
        )
        self._tokens = RATE_MEMORY * self._tokens + (emitted if self.begun else 0)

    def choose(
        self, proposals: Sequence[Proposal], room: Sequence[int], drafting: float, by_depth: bool = False
    ) -> tuple[list[list[int]], np.ndarray | None]:
        """The nodes that each row keeps, the root first; and by_depth, what trees of these proposals down to depths 0,
        1, ... are worth, in tokens a step. drafting: seconds that the proposals took."""
        rates = self._estimates.rates()
        for row, proposal, left in zip(self._rows, proposals, room, strict=True):
            row.propose(proposal, rates, left)
        reached = max(len(proposal.shape.levels) for proposal in proposals)
        counts, worth = self._best(reached)
        worths = np.array([*(self._best(depth)[1] for depth in range(reached)), worth]) if by_depth else None
        if self._whole:
            sizes = [int(np.count_nonzero(proposal.shape.depth)) + 1 for proposal in proposals]
            for row, proposal in zip(self._rows, proposals, strict=True):
                row.kept = list(range(len(proposal.tokens)))
        else:
            sizes = [len(row.keep(count)) for row, count in zip(self._rows, counts, strict=True)]
        size = sum(sizes) / len(sizes) if self._skips_padding else max(sizes)
        verifying = float(np.interp(size - 1, np.arange(len(self._seconds)), self._seconds))
        self._spent = RATE_MEMORY * self._spent + verifying + drafting
        self.begun = True
        return [row.kept for row in self._rows], worths

    def own(self, paths: Sequence[Sequence[int]]) -> list[list[int]]:
        """Accepted paths through the nodes that were kept, numbered as the proposals do."""
        return [
            [PAD if node == PAD else row.kept[node] for node in path]
            for row, path in zip(self._rows, paths, strict=True)
        ]

    def _best(self, depth: int) -> tuple[list[int], float]:
        """How many nodes of each row pay, of those down to a depth; and what they are worth."""
        rows = [row.ranked(depth)[: len(self._extra) - 1] for row in self._rows]
        shared = self._skips_padding and len(rows) > 1
        if shared:  # a node has its price, whichever row it is in
            gains = -np.sort(-np.concatenate(rows))
            price = np.interp(np.arange(len(gains) + 1) / len(rows), np.arange(len(self._extra)), self._extra)
        else:  # every row has room for as many nodes as the widest
            gains = np.zeros(max(map(len, rows)))
            for row in rows:
                gains[: len(row)] += row
            price = self._extra[: len(gains) + 1]
        net = -self.rate * price
        net[1:] += gains.cumsum()
        best = len(gains) if self._whole else int(net.argmax())
        if shared and best:
            return [int(np.count_nonzero(row >= gains[best - 1])) for row in rows], float(net[best])
        return [best] * len(rows), float(net[best])


class _Row:
    """One row's text so far, and what was proposed for it."""

    def __init__(self, length: int) -> None:
        self._length, self._pending = length, Pending()
        self.kept = [0]  # of the last proposal, in order

    def read(self, text: Sequence[int], room: int, estimates: Estimates) -> int:
        """Learn from proposals whose text has been written, of a text that has ended from all; how many tokens came."""
        new, self._length = len(text) - self._length, len(text)
        self._pending.judge(text, estimates, over=not room)
        return new

    def propose(self, proposal: Proposal, rates: np.ndarray, room: int) -> None:
        self._pending.add(proposal, self._length)
        depth = proposal.shape.depth
        gains = np.where(depth < max(room, 1), proposal.gains(rates), 0.0)  # what follows has no place
        # a child gains less than its parent and comes later: the first of these nodes are a tree, however many
        self._order = np.argsort(-gains, kind="stable")[: np.count_nonzero(gains)]
        self._gains, self._depth = gains[self._order], depth[self._order]

    def ranked(self, depth: int) -> np.ndarray:
        """What the nodes down to that depth gain, best first."""
        return self._gains[self._depth <= depth]

    def keep(self, nodes: int) -> list[int]:
        """Choose the best nodes, so many."""
        self.kept = [0, *np.sort(self._order[:nodes]).tolist()]
        return self.kept
