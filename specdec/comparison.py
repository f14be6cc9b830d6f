"""Do two groups of runs differ? Paired over prompts, with the smallest difference that could have been seen.

Each group is one run, or several of the same configuration that differ in their seeds. Both answer the same prompts, so
that a hard prompt is hard for both: prompts are resampled in pairs, and within a group its runs (Efron's bootstrap at
two levels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.errors import InputError
from specdec.metrics import Interval
from specdec.runs import Run

RESAMPLES = 4000
POWER = 1.96 + 0.84  # standard errors: found in 80 of 100 experiments, at 5 % of false alarms
QUANTITIES = ("emitted", "steps", "accepted", "offered", "tokens", "seconds", "base_seconds")
Prompt = tuple[str, int]  # its id and the turn
Sums = np.ndarray  # [... quantities]


@dataclass(frozen=True)
class Figure:
    """A ratio of sums over prompts.

    Args:
        name: as in tables.
        of: from sums [... quantities] to the figure [...]; NaN if a run does not tell it.
        better: what a larger value means, in a word.
    """

    name: str
    of: Callable[[Sums], np.ndarray]
    better: str


def _ratio(over: str, under: str) -> Callable[[Sums], np.ndarray]:
    top, bottom = QUANTITIES.index(over), QUANTITIES.index(under)

    def ratio(sums: Sums) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., top] / sums[..., bottom])

    return ratio


FIGURES = (
    Figure("tokens per step", _ratio("emitted", "steps"), "longer"),
    Figure("acceptance rate", _ratio("accepted", "offered"), "higher"),
    Figure("tokens/s", _ratio("tokens", "seconds"), "faster"),
    Figure("speedup", _ratio("base_seconds", "seconds"), "faster"),
)


@dataclass(frozen=True)
class Difference:
    """One figure of two groups.

    Args:
        name: of the figure.
        first, second: its value in each group.
        ratio: second / first.
        interval: 95 % of the ratio; None for a single prompt.
        visible: the smallest ratio above 1 that this comparison would have found 80 times in 100; None likewise.
        verdict: one sentence.
    """

    name: str
    first: float
    second: float
    ratio: float
    interval: Interval | None
    visible: float | None
    verdict: str


def compare(first: Sequence[Run], second: Sequence[Run]) -> tuple[list[Difference], int]:
    """Every figure that both groups tell, and the number of prompts (turns counted) that they share.

    Raises:
        InputError: they have no prompt in common.
    """
    tables = [[_sums(run) for run in group] for group in (first, second)]
    shared = set.intersection(*(set(table) for group in tables for table in group))
    if not shared:
        raise InputError(
            "folders",
            expected="two groups of finished runs over the same prompts",
            got="no prompt that all of them answered",
            fix="run both with the same prompts=... and prompts.limit",
        )
    order = sorted(shared)
    groups = [np.array([[table[prompt] for prompt in order] for table in group]) for group in tables]
    return [found for figure in FIGURES if (found := _difference(figure, *groups)) is not None], len(order)


def _difference(figure: Figure, first: np.ndarray, second: np.ndarray) -> Difference | None:
    """first, second: [runs prompts quantities]."""
    of_first, of_second = (float(figure.of(group.sum((0, 1)))) for group in (first, second))
    if not all(math.isfinite(value) and value > 0 for value in (of_first, of_second)):
        return None
    values, prompts = (of_first, of_second, of_second / of_first), first.shape[1]
    if prompts == 1:
        return Difference(figure.name, *values, None, None, "one prompt tells nothing about others")
    logs = np.log(_resampled(figure, second, 2) / _resampled(figure, first, 1))
    logs = logs[np.isfinite(logs)]
    low, high = np.exp(np.quantile(logs, [0.025, 0.975])).tolist()
    visible = math.exp(POWER * float(logs.std()))
    return Difference(figure.name, *values, (low, high), visible, _verdict(figure, low, high, visible))


def _resampled(figure: Figure, group: np.ndarray, stream: int) -> np.ndarray:
    """The figure of `RESAMPLES` resamples; both groups draw the same prompts, each its own runs."""
    runs, prompts, _ = group.shape
    picked = np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))
    of_runs = np.random.default_rng(stream).integers(runs, size=(RESAMPLES, runs))
    chosen = np.stack([np.bincount(row, minlength=runs) for row in of_runs])
    weights = np.stack([np.bincount(row, minlength=prompts) for row in picked])
    return figure.of(np.einsum("sr,sp,rpq->sq", chosen, weights, group, optimize=True))


def _verdict(figure: Figure, low: float, high: float, visible: float) -> str:
    if low > 1:
        return f"the second is {figure.better}"
    if high < 1:
        return f"the first is {figure.better}"
    return f"no difference was seen; one of {visible - 1:.1%} would have been, 80 times in 100"


def _sums(run: Run) -> dict[Prompt, np.ndarray]:
    """Sums of the quantities by prompt, over the run's repeats; NaN for what it does not tell."""
    run.refresh()
    sums: dict[Prompt, np.ndarray] = {}
    for key, records in run.texts.items():
        row = sums.setdefault((key.prompt, key.turn), np.zeros(len(QUANTITIES)))
        row[:4] += (
            sum(record.emitted for record in records),
            len(records),
            sum(record.accepted for record in records),
            sum(record.offered for record in records),
        )
    timed = set()
    for generation in run.generations:
        prompt = (str(generation.get("prompt")), int(generation.get("turn", 0)))
        if prompt in sums:
            sums[prompt][4:] += _times(generation)
            timed.add(prompt)
    return {prompt: row for prompt, row in sums.items() if prompt in timed}


def _times(generation: Mapping[str, object]) -> tuple[float, float, float]:
    """Tokens, seconds, and seconds of the baseline if its text was the same."""
    seconds, tokens = generation.get("seconds"), generation.get("tokens")
    if not isinstance(seconds, Mapping):
        return (math.nan,) * 3
    base = seconds.get("autoregressive", math.nan) if generation.get("identical") else math.nan
    count = len(tokens) if isinstance(tokens, Sequence) else math.nan
    return count, float(seconds.get("speculative", math.nan)), float(base)
