"""Choose the nodes of a step that pay.

A node gains the probability that it is accepted, in tokens. It costs the extra time of a verify that includes it. The
node pays if

    gain > rate x extra time

where rate is tokens per second so far. Repeating this with the updated rate converges to the largest rate (Dinkelbach's
iteration for a ratio).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drafters.shared.estimates import Estimates, Pending, Proposal
from specdec.trees.tree import PAD

RATE_MEMORY = 0.95  # tokens and seconds decay by this factor per step, so the rate covers about the last 20 steps
FIRST_STEPS = 4.0  # a batch's rate starts as if it had made this many steps of plain decoding


class NodeChoice:
    """Choose nodes for the rows of one batch.

    Args:
        lengths: tokens of each prompt.
        seconds: time of a verify with 1, 2, ... nodes per row.
        estimates: P(right | parent right); learns from every proposal.
        skips_padding: whether rows of different sizes cost no padding.
        whole: keep all nodes. The estimates learn from them all the same.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seconds: np.ndarray,
        estimates: Estimates,
        *,
        skips_padding: bool,
        whole: bool = False,
    ) -> None:
        self._rows = [_RowHistory(length) for length in lengths]
        self._seconds, self._extra = seconds, seconds - seconds[0]
        self._estimates, self._skips_padding, self._whole = estimates, skips_padding, whole
        self._tokens, self._spent = FIRST_STEPS * len(lengths), FIRST_STEPS * float(seconds[0])
        self.begun = False  # True after the first step

    @property
    def rate(self) -> float:
        """Tokens per second in recent steps."""
        return self._tokens / self._spent

    def most(self, rows: int) -> float:
        """Return the largest possible worth of a tree in tokens: that of a chain whose nodes are all right."""
        return float((rows * np.arange(len(self._extra)) - self.rate * self._extra).max())

    def read(self, texts: Sequence[Sequence[int]], room: Sequence[int]) -> None:
        """Learn the outcome of the step before.

        Args:
            texts: tokens of each row, prompt included.
            room: as in `DraftState`.
        """
        emitted = sum(
            row.read(text, left, self._estimates) for row, text, left in zip(self._rows, texts, room, strict=True)
        )
        self._tokens = RATE_MEMORY * self._tokens + (emitted if self.begun else 0)

    def choose(
        self, proposals: Sequence[Proposal], room: Sequence[int], drafting: float, by_depth: bool = False
    ) -> tuple[list[list[int]], np.ndarray | None]:
        """Choose the nodes that each row keeps.

        Args:
            proposals: one per row.
            room: as in `DraftState`.
            drafting: seconds spent on drafting the proposals.
            by_depth: also compute the worth of shallower trees.

        Returns:
            The kept nodes of each row, root first; and the worth in tokens per step of the best trees down to depths
            0, 1, ..., or None without `by_depth`.
        """
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
        """Renumber accepted paths: from the numbers of the kept nodes to those of the proposals."""
        return [
            [PAD if node == PAD else row.kept[node] for node in path]
            for row, path in zip(self._rows, paths, strict=True)
        ]

    def _best(self, depth: int) -> tuple[list[int], float]:
        """Return how many nodes of each row pay, down to a depth, and their worth in tokens."""
        rows = [row.ranked(depth)[: len(self._extra) - 1] for row in self._rows]
        shared = self._skips_padding and len(rows) > 1
        if shared:  # a node costs the same in whichever row it is
            gains = -np.sort(-np.concatenate(rows))
            price = np.interp(np.arange(len(gains) + 1) / len(rows), np.arange(len(self._extra)), self._extra)
        else:  # every row is padded to the widest one
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


class _RowHistory:
    """The text of one row so far, and the proposals for it."""

    def __init__(self, length: int) -> None:
        self._length, self._pending = length, Pending()
        self.kept = [0]  # kept nodes of the last proposal, ascending

    def read(self, text: Sequence[int], room: int, estimates: Estimates) -> int:
        """Learn from every proposal whose text is known, or from all if the text has ended.

        Returns how many tokens are new since the last call.
        """
        new, self._length = len(text) - self._length, len(text)
        self._pending.judge(text, estimates, over=not room)
        return new

    def propose(self, proposal: Proposal, rates: np.ndarray, room: int) -> None:
        self._pending.add(proposal, self._length)
        depth = proposal.shape.depth
        gains = np.where(depth < max(room, 1), proposal.gains(rates), 0.0)  # deeper nodes could not be emitted
        # a child gains no more than its parent and comes later in a stable sort, so every prefix of `_order` is a tree
        self._order = np.argsort(-gains, kind="stable")[: np.count_nonzero(gains)]
        self._gains, self._depth = gains[self._order], depth[self._order]

    def ranked(self, depth: int) -> np.ndarray:
        """Return the gains of the nodes down to that depth, best first."""
        return self._gains[self._depth <= depth]

    def keep(self, nodes: int) -> list[int]:
        """Keep the root and the best `nodes` nodes."""
        self.kept = [0, *np.sort(self._order[:nodes]).tolist()]
        return self.kept
