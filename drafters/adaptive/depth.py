"""Choose how deep to draft: the depth with the largest worth after the cost of drafting it."""

from __future__ import annotations

import numpy as np

NEWEST = 0.1  # minimum weight of the newest observation in a level's worth
FIRST = 8  # proposals to observe before any depth is given up
LOOK = 4  # steps between observations of the levels' worth, because observing takes time
RETRY, LONGEST_RETRY = 4, 64  # steps until depths that did not pay are tried again; doubled each time they do not


class DepthChoice:
    """Choose the depth for a drafter that is only known by its proposals.

    The worth of a level is in tokens per step: how much more the best tree down to this level is worth than the best
    tree without it, the cost of a longer verify included.
    """

    def __init__(self) -> None:
        self._worth, self._seen = np.zeros(1), np.zeros(1)  # per level: its worth, and how often it was observed
        self._retry, self._waited, self._steps = RETRY, 0, 0
        self.looks = True  # whether this step should observe the levels' worth

    @property
    def deepest(self) -> int:
        return len(self._worth)

    def choose(self, price: np.ndarray, most: float) -> int | None:
        """Return the depth to draft, or None for no limit.

        Args:
            price: cost in tokens of drafting down to depths 0, 1, ..., `deepest`.
            most: largest possible worth of a tree, in tokens. If it does not pay for one level, the depth is 0.
        """
        self._steps += 1
        self.looks = bool(self._seen.max() < FIRST) or self._steps % LOOK == 0
        if most <= price[1]:
            return 0
        if self._seen.max() < FIRST:
            return None
        best = int(np.append(0, self._worth.cumsum() - price[1:] + price[0]).argmax())
        if best == self.deepest:
            self._retry, self._waited = RETRY, 0
            return None
        self._waited += 1
        if self._waited > self._retry:
            self._retry, self._waited = min(2 * self._retry, LONGEST_RETRY), 0
            self.looks = True
            return None
        return best

    def learn(self, asked: int | None, worth: np.ndarray) -> None:
        """Learn from one proposal.

        Args:
            asked: the depth that `choose` returned.
            worth: worth of the best trees down to depth 0, 1, ..., up to the proposal's depth, in tokens per step.
        """
        more = max(len(worth) - 1 - self.deepest, 0)
        self._worth, self._seen = (np.append(table, [0.0] * more) for table in (self._worth, self._seen))
        levels = self.deepest if asked is None else max(asked, len(worth) - 1)  # some drafters go deeper than asked
        gained = np.zeros(levels)  # levels that the proposal did not reach gained nothing
        gained[: len(worth) - 1] = np.diff(worth)
        self._seen[:levels] += 1
        share = np.maximum(1 / self._seen[:levels], NEWEST)
        self._worth[:levels] += share * (gained - self._worth[:levels])
