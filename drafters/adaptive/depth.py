"""How deep to draft: the depth that was worth most, less what drafting it took."""

from __future__ import annotations

import numpy as np

NEWEST = 0.1  # of what a level is worth, the least share that is today's
FIRST = 8  # proposals that are looked at before any depth is given up
LOOK = 4  # steps between looks at what the levels are worth, which takes time too
RETRY, LONGEST_RETRY = 4, 64  # steps until depths that did not pay are tried again; twice as many each time they do not


class DepthChoice:
    """Of a drafter whose depths are known only by what it proposes. A level's worth is in tokens a step: those that the
    best tree gains by going down to it, less what its verify takes away from others."""

    def __init__(self) -> None:
        self._worth, self._seen = np.zeros(1), np.zeros(1)  # of each level; how often it was looked at
        self._retry, self._waited, self._steps = RETRY, 0, 0
        self.looks = True  # whether what the levels are worth should be learnt from this step

    @property
    def deepest(self) -> int:
        return len(self._worth)

    def choose(self, price: np.ndarray, most: float) -> int | None:
        """None: as deep as the drafter likes. price: in tokens, of drafting down to depths 0, 1, ... deepest. most: the
        largest worth there can be; where that does not pay, nothing is ever tried."""
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
        """worth: of trees down to depth 0, 1, ... as far as the proposal went; asked: what `choose` said."""
        more = max(len(worth) - 1 - self.deepest, 0)
        self._worth, self._seen = (np.append(table, [0.0] * more) for table in (self._worth, self._seen))
        levels = self.deepest if asked is None else max(asked, len(worth) - 1)  # some go deeper than they are asked
        gained = np.zeros(levels)  # by the levels that the proposal did not reach, nothing
        gained[: len(worth) - 1] = np.diff(worth)
        self._seen[:levels] += 1
        share = np.maximum(1 / self._seen[:levels], NEWEST)
        self._worth[:levels] += share * (gained - self._worth[:levels])
