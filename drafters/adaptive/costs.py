"""Costs of adaptive drafting: seconds of a verify by its number of nodes, and of drafting by its depth."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

import numpy as np

from specdec.decoding.protocols import Session
from specdec.hardware import CostCurve
from specdec.measure.profiling import Point, forward_ms
from specdec.model.runtime.graphs import captures_postponed
from specdec.model.target import TargetModel

ROUNDS, HOPELESS = 7, 6
RECENT = 9  # times kept per depth; their median ignores single disturbances


class VerifyCosts:
    """Seconds of a verify.

    Args:
        curve: known times. None times the target when a batch size first occurs, at the length of its prompts (some
            forwards, about a second on a small model).
    """

    def __init__(self, curve: CostCurve | None) -> None:
        self._curve = curve
        self._known: dict[tuple[int, int], np.ndarray] = {}
        self._target: TargetModel | None = None

    def seconds(self, session: Session, nodes: int) -> np.ndarray:
        """Return the seconds of a verify of 1, 2, ..., `nodes` nodes per row, root included.

        Raises:
            InputError: a size outside a measured curve.
        """
        batch, context = len(session.rows), max(map(len, session.rows))
        if self._curve is not None:
            return np.array([self._curve.seconds(n, batch, context) for n in range(1, nodes + 1)])
        if session.target is not self._target:
            self._target, self._known = session.target, {}
        if (batch, nodes) not in self._known:
            self._known[batch, nodes] = timed(session.target, nodes, batch, context)
        return self._known[batch, nodes]


def timed(target: TargetModel, nodes: int, batch: int, context: int) -> np.ndarray:
    """Time verify forwards over 1 to `nodes` nodes, in seconds.

    - Powers of two are timed in turns. The fastest of `ROUNDS` rounds counts, because disturbances only add time. Other
      sizes are interpolated.
    - If more nodes take less time than fewer, their time holds for both, because a smaller tree can be padded.
    - Timing stops at a size that takes `HOPELESS` times as long as one token, because it cannot pay. Larger trees are
      assumed to take time in proportion to their nodes.

    Args:
        target: the model to time.
        nodes: largest number of nodes per row, root included.
        batch: rows.
        context: tokens in the cache of each row.
    """
    cache = target.new_cache(batch, context + nodes)

    def ms(size: int) -> float:
        return forward_ms(target, cache, Point(size, context, batch))

    def prepared(size: int) -> float:
        with captures_postponed():
            ms(size)  # warm-up: libraries initialise, graphs are captured
        return ms(size)

    sizes, first = [1], prepared(1)
    while sizes[-1] < nodes and prepared(sizes[-1]) < HOPELESS * first:
        sizes.append(min(2 * sizes[-1], nodes))
    times = np.min([[ms(size) for size in sizes] for _ in range(ROUNDS)], axis=0) / 1e3
    rising = np.minimum.accumulate(times[::-1])[::-1]
    wanted = np.arange(1, nodes + 1)
    return np.interp(wanted, sizes, rising) * np.maximum(wanted / sizes[-1], 1)


class DraftCosts:
    """Seconds of drafting down to each depth.

    Args:
        level: seconds per level; None measures them.
    """

    def __init__(self, level: float | None) -> None:
        self._level = level
        self._times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))

    def learn(self, depth: int, seconds: float) -> None:
        self._times[depth].append(seconds)

    def seconds(self, deepest: int) -> np.ndarray:
        """Return the seconds of drafting 0, 1, ..., `deepest` levels.

        Depths that were never drafted are interpolated. Depth 0 counts as 0 seconds until it was timed.
        """
        depths = np.arange(deepest + 1)
        if self._level is not None:
            return self._level * depths
        known = {0: 0.0} | {depth: median(times) for depth, times in self._times.items()}
        at = sorted(known)
        return np.interp(depths, at, [known[depth] for depth in at])
