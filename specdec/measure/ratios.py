"""Ratios of times measured side by side, and the file of their expected values and bounds.

Seconds depend on the machine and on its load; ratios of methods that took turns depend on them much less, so they can
reveal a regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.intervals import Interval

BOUNDS = ("at_least", "at_most")
SIDES = " / "  # separates the two methods in the name of a ratio


@dataclass(frozen=True)
class Ratio:
    """A measured ratio.

    Args:
        name: the two methods, separated by `SIDES`.
        value: the ratio.
        interval: its 95 % interval.
        less: True if less is better (a cost), False if more is better (a speedup).
    """

    name: str
    value: float
    interval: Interval | None
    less: bool = False

    @property
    def bound(self) -> str:
        return BOUNDS[self.less]

    def meets(self, limit: float) -> bool:
        return self.value <= limit if self.less else self.value >= limit


def expectations(ratios: Iterable[Ratio], tolerance: float) -> dict[str, dict[str, float]]:
    """Return the expected value and the bound of each ratio, for the file that later runs are compared with.

    Bounds may be edited by hand.

    Args:
        ratios: measured ratios.
        tolerance: distance of the bound from the value, on its worse side, as a share of the value.
    """
    worse = {False: 1 - tolerance, True: 1 + tolerance}
    return {r.name: {"expected": round(r.value, 3), r.bound: round(r.value * worse[r.less], 3)} for r in ratios}


def read_expectations(path: str) -> dict[str, dict[str, float]]:
    """Return the expectations in a file, by the names of the ratios.

    Raises:
        InputError: no such file, malformed JSON, no ratios, or a ratio without a bound.
    """
    what = "a file of ratios written by `make ratios ARGS=write=...`"
    try:
        ratios: Any = read_json(Path(path))["ratios"]
        for name, entry in ratios.items():
            (bound,) = set(entry) & set(BOUNDS)
            limit = entry[bound]
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
                raise TypeError(f"{name!r}: {bound} is no number")
    except OSError as error:
        raise InputError("check", expected=what, got=f"{path!r} ({error.strerror})", fix="check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{path!r} ({type(error).__name__}: {error})"
        raise InputError("check", expected=what, got=got, fix="write it anew") from error
    if not ratios:
        raise InputError("check", expected=what, got=f"{path!r} (no ratios)", fix="write it anew")
    return dict(ratios)


def shortfalls(
    ratios: Iterable[Ratio], expected: Mapping[str, Mapping[str, float]], missing: Iterable[str] = ()
) -> list[str]:
    """Return one line for each expected ratio that breaks its bound or was not measured.

    Args:
        ratios: measured ratios.
        expected: expectations by name.
        missing: names of methods that cannot run on this machine; ratios with one of them may be unmeasured.
    """
    measured, absent, lines = {ratio.name: ratio for ratio in ratios}, set(missing), []
    for name, entry in expected.items():
        (bound,) = set(entry) & set(BOUNDS)
        limit = entry[bound]
        if name not in measured:
            if not absent & set(name.split(SIDES)):
                lines.append(f"{name}: expected {bound.replace('_', ' ')} {limit}, was not measured")
        elif not Ratio(name, measured[name].value, None, less=bound == "at_most").meets(limit):
            lines.append(f"{name}: expected {bound.replace('_', ' ')} {limit}, measured {measured[name].value:.3f}")
    return lines
