"""The number that a job returns to a search: a figure, or the lower end of its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdec.errors import InputError
from specdec.measure.worth import FIGURES

BOUNDS = ("estimate", "lower")


def check_objective(name: str, bound: str, samples: int) -> None:
    """Check the options before anything is measured.

    Args:
        name: one of `FIGURES`.
        bound: `estimate`, or `lower` for the lower end of the 95 % interval.
        samples: number of prompts (or batches of prompts) to measure.

    Raises:
        InputError: an unknown figure or bound, or `lower` with fewer than two samples.
    """
    for option, value, known in (("objective", name, FIGURES), ("objective_bound", bound, BOUNDS)):
        if value not in known:
            raise InputError(option, expected=f"one of {', '.join(known)}", got=repr(value), fix="choose one of these")
    if bound == "lower" and samples < 2:
        raise InputError(
            "objective_bound=lower", expected="two prompts or more, for an interval", got=samples,
            fix="raise prompts.limit (or measure.prompts), lower generation.batch_size, or use estimate",
        )  # fmt: skip


def objective(figures: Mapping[str, Any], name: str, bound: str) -> float | None:
    """Return the figure, or the lower end of its interval; None if the run did not measure it."""
    if bound == "estimate":
        return figures.get(name)
    interval = figures.get(f"{name}_ci95")
    return None if interval is None else interval[0]
