"""What a forward costs by its nodes: predicted (`Roofline`), measured (`MeasuredCurve`), or nothing (`FREE`)."""

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

MOST_DIP = 0.1  # of the time of fewer nodes: more than noise and tile sizes make


@runtime_checkable
class CostCurve(Protocol):
    """Never falls with nodes, in any batch and context."""

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        """Of one forward over `nodes` tokens per sequence, the root included, `batch` rows behind `context` tokens."""
        ...


class _Free:
    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return 0.0


FREE: CostCurve = _Free()


@dataclass(frozen=True)
class DraftCost:
    """once: heads, which guess all depths at a time; level: a draft model, which runs once for each depth over the
    nodes of the level above (at depth 1 the root)."""

    once: CostCurve = FREE
    level: CostCurve = FREE

    def seconds(self, levels: Sequence[int], batch: int = 1, context: int = 512) -> float:
        """Of drafting a tree with `levels` nodes at depth 1, 2, ...; nothing where nothing is drafted."""
        if not levels:
            return 0.0
        grown = sum(self.level.seconds(nodes, batch, context) for nodes in [1, *levels[:-1]])
        return self.once.seconds(1, batch, context) + grown


class MeasuredCurve:
    """A `profile.json` of `experiments.profile_target`, interpolated linearly between its points. Each point is the
    lower quartile of its rounds: disturbances only ever add time, and on a busy machine they are in most rounds.

    Used are the pairs of prefix and batch at which several numbers of tokens were measured (`grid` of that command, and
    its base point). Outside of what was measured nothing is guessed.

    A forward can always be padded with nodes that nobody looks at. So where more nodes were measured to take less
    time, the fewer are given that time too: the curve never falls. It says so where this changes more than 2 %, and
    refuses a dip of more than `MOST_DIP`, which is a disturbed measurement and not a property of the machine.

    Raises:
        InputError: no such file, not a profile, too few points, or a curve that falls.
    """

    def __init__(self, file: Path | str) -> None:
        profile = read_profile(file)
        self.target, self.device, self.dtype = profile["target"], profile.get("device"), profile["dtype"]
        self.skips_padding = bool(profile.get("skips_padding"))  # see `TargetModel`
        self._curves = self._complete(_monotone_all(profile["points"]))

    @staticmethod
    def _complete(curves: dict[tuple[int, int], Mapping[int, float]]) -> dict[tuple[int, int], Mapping[int, float]]:
        """Prefixes and batches whose every pair was measured: those of the grid, or else a single pair."""
        prefixes, batches = ({pair[i] for pair in curves} for i in (0, 1))
        if len(curves) == len(prefixes) * len(batches):
            return curves
        # the base point often lies beside the grid: leave out the pairs that have no partner
        common = {p for p in prefixes if all((p, b) in curves for b in batches)}
        whole = {pair: curve for pair, curve in curves.items() if pair[0] in common}
        if not whole:
            raise _bad("profile", "a grid of prefixes and batches", "pairs that make none", "measure with grid.*")
        return whole

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        """Raises:
        InputError: outside of what was measured.
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
    """Curves by (prefix, batch), seconds by tokens, rising."""
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
    """The known values on both sides, with their shares.

    Raises:
        InputError: outside.
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
