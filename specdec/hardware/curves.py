"""Time of a forward by its number of nodes: predicted (`Roofline`), measured (`MeasuredCurve`), or zero (`FREE`)."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from specdec.errors import InputError
from specdec.hardware.machine import read_profile

MOST_DIP = 0.1  # largest drop of the time with more nodes, as a share; noise and tile sizes cause less


@runtime_checkable
class CostCurve(Protocol):
    """Time of a forward. It never falls with the number of nodes, at any batch and context."""

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        """Return the seconds of one forward.

        Args:
            nodes: tokens per row, the root included.
            batch: rows.
            context: tokens of each row already in the KV cache.
        """
        ...


class _Free:
    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return 0.0


FREE: CostCurve = _Free()


@dataclass(frozen=True)
class DraftCost:
    """Time of drafting a tree.

    Args:
        once: cost of heads, which draft all depths in one forward.
        level: cost of a draft model, which runs once per depth over the nodes of the depth above (the root at first).
    """

    once: CostCurve = FREE
    level: CostCurve = FREE

    def seconds(self, levels: Sequence[int], batch: int = 1, context: int = 512) -> float:
        """Return the seconds of drafting a tree; 0 for an empty tree.

        Args:
            levels: number of nodes at depth 1, 2, ...
            batch, context: as in `CostCurve.seconds`.
        """
        if not levels:
            return 0.0
        grown = sum(self.level.seconds(nodes, batch, context) for nodes in [1, *levels[:-1]])
        return self.once.seconds(1, batch, context) + grown


class MeasuredCurve:
    """Cost curve of a `profile.json` of `experiments.profile_target`, interpolated linearly between its points.

    - A point is the lower quartile of its rounds: disturbances only add time, and on a busy machine most rounds are
      disturbed.
    - The curve uses the pairs of prefix and batch at which several numbers of tokens were measured (`grid` of that
      command, and its base point). It does not extrapolate.
    - A forward can be padded with unused nodes. So if more nodes took less time, fewer nodes get that shorter time,
      and the curve never falls. A change of more than 2 % is a warning; a drop of more than `MOST_DIP` is refused as a
      disturbed measurement.

    Raises:
        InputError: no such file, not a profile, too few points, or a curve that falls by more than `MOST_DIP`.
    """

    def __init__(self, file: Path | str) -> None:
        profile = read_profile(file)
        self.target, self.device, self.dtype = profile["target"], profile.get("device"), profile["dtype"]
        self.skips_padding = bool(profile.get("skips_padding"))  # see `TargetModel`
        self._curves = self._complete(_monotone_all(profile["points"]))

    @staticmethod
    def _complete(curves: dict[tuple[int, int], Mapping[int, float]]) -> dict[tuple[int, int], Mapping[int, float]]:
        """Return the curves of a full grid of prefixes and batches: every pair of them was measured."""
        prefixes, batches = ({pair[i] for pair in curves} for i in (0, 1))
        if len(curves) == len(prefixes) * len(batches):
            return curves
        # the base point often lies outside the grid: leave out prefixes that were not measured at every batch
        common = {p for p in prefixes if all((p, b) in curves for b in batches)}
        whole = {pair: curve for pair, curve in curves.items() if pair[0] in common}
        if not whole:
            raise _bad("profile", "a grid of prefixes and batches", "pairs that make none", "measure with grid.*")
        return whole

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        """Return the interpolated seconds. Arguments as in `CostCurve.seconds`.

        Raises:
            InputError: outside the measured range.
        """
        prefixes, batches = (sorted({pair[i] for pair in self._curves}) for i in (0, 1))
        total = 0.0
        for p, share_p in _around("prefix", context, prefixes):
            for b, share_b in _around("batch", batch, batches):
                curve = self._curves[p, b]
                for n, share_n in _around("tokens", nodes, list(curve)):
                    total += share_p * share_b * share_n * curve[n]
        return total


def _monotone_all(points: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], Mapping[int, float]]:
    """Return curves by (prefix, batch): seconds by number of tokens, never falling."""
    found: dict[tuple[int, int], dict[int, float]] = {}
    if not isinstance(points, list):
        raise _bad("profile", "a list of points", type(points).__name__, "name a profile.json as it was written")
    for point in points:
        try:
            counts = prefix, batch, tokens = point["prefix"], point["batch"], point["tokens"]
            quartile = point["ms"]["quartiles"][0]
            if not all(type(n) is int and n >= 0 for n in counts) or not 0 < quartile < math.inf:
                raise ValueError(f"tokens, prefix, batch {counts}, {quartile} ms")
        except (KeyError, TypeError, IndexError, ValueError) as error:
            got, fix = f"{type(error).__name__}: {error}", "run python -m experiments.profile_target again"
            raise _bad("profile", "points with positive times", got, fix) from error
        found.setdefault((prefix, batch), {})[tokens] = quartile / 1e3
    curves = {pair: _monotone(pair, curve) for pair, curve in found.items() if len(curve) > 1 and 1 in curve}
    if not curves:
        raise _bad("profile", "times of several numbers of tokens, 1 among them", "none", "measure with axes.tokens")
    return curves


def _monotone(pair: tuple[int, int], curve: Mapping[int, float]) -> Mapping[int, float]:
    tokens = sorted(curve)
    times = np.array([curve[n] for n in tokens])
    padded = np.minimum.accumulate(times[::-1])[::-1]
    dip = float((1 - padded / times).max())
    where = f"profile at prefix {pair[0]}, batch {pair[1]}"
    at = tokens[int((1 - padded / times).argmax())]
    if dip > MOST_DIP:
        fix = "measure again, with more rounds, while nothing else runs"
        raise _bad(where, "a time that does not fall with more tokens", f"{dip:.0%} less beyond {at} tokens", fix)
    if dip > 0.02:
        warnings.warn(
            f"{where}: {at} tokens take {dip:.0%} longer than more do; padding makes them equal", stacklevel=4
        )
    return dict(zip(tokens, padded.tolist(), strict=True))


def _around(what: str, value: int, known: Sequence[int]) -> list[tuple[int, float]]:
    """Return the known values next to `value`, with their weights in the linear interpolation.

    Args:
        what: name used in error messages.
        value: the value to interpolate at.
        known: measured values, sorted.

    Raises:
        InputError: `value` is outside the measured range.
    """
    if not known[0] <= value <= known[-1]:
        option = {"prefix": "grid.prefix", "batch": "grid.batch", "tokens": "grid.tokens"}[what]
        fix = f"profile the target with {option}=[...] around it"
        raise _bad(f"{what} of a forward", f"{known[0]} to {known[-1]}, as the profile measured", value, fix)
    right = bisect_left(known, value)
    if known[right] == value:
        return [(value, 1.0)]
    low, high = known[right - 1], known[right]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _bad(what: str, expected: str, got: object, fix: str) -> InputError:
    return InputError(what, expected=expected, got=got, fix=fix)
