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
from specdec.metrics import Interval, resampled
from specdec.runs.read import Run, TextKey

RESAMPLES = 4000
FEWEST = 6  # prompts: even if all of fewer point the same way, chance alone does that more than 5 times in 100
POWER = 1.96 + 0.84  # standard errors: found in 80 of 100 experiments, at 5 % of false alarms
QUANTITIES = ("emitted", "steps", "accepted", "offered", "tokens", "seconds", "base_tokens", "base_seconds")
Prompt = tuple[str, int, str]  # its id, the turn, and what was asked: sets may number their prompts alike
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


_fast, _plain = _ratio("tokens", "seconds"), _ratio("base_tokens", "base_seconds")
FIGURES = (
    Figure("tokens per step", _ratio("emitted", "steps"), "longer"),
    Figure("acceptance rate", _ratio("accepted", "offered"), "higher"),
    Figure("tokens/s", _fast, "faster"),
    Figure("speedup", lambda sums: _fast(sums) / _plain(sums), "faster"),
)
PLAIN = Figure("plain tokens/s", _plain, "faster, whatever drafts")  # the same work in both
DRIFTS = {"tokens/s": 2, "speedup": 1}  # how many times the machine's drift can be in a figure: see `compare`


@dataclass(frozen=True)
class Difference:
    """One figure of two groups.

    Args:
        name: of the figure.
        first, second: its value in each group.
        ratio: second / first.
        interval: 95 % of the ratio; None for a single prompt. Those of times are wider by the drift.
        visible: the smallest ratio above 1 that this comparison would have found 80 times in 100; None if the prompts
            are too few to find any.
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
    """Return every figure that both groups tell, and the number of prompts (turns counted) that they share.

    Runs at different times find the machine in different states, which no resampling of prompts shows. Plain decoding
    is the same work in both groups, so its ratio is taken for the machine's drift. A machine that is busier by 10 % may
    slow drafting and verifying by 10 % more than plain decoding, so speedups have to differ by more than the drift; and
    tokens/s, speedup times plain tokens/s, by more than twice the drift.

    Raises:
        InputError: they have no prompt in common.
    """
    tables = [[table for run in group for table in _by_seed(run)] for group in (first, second)]
    if not all(tables):
        raise _nothing_shared("a group without a finished text")
    shared = set.intersection(*(set(table) for group in tables for table in group))
    if not shared:
        raise _nothing_shared("no prompt that all of them answered")
    order = sorted(shared)
    one, other = (np.array([[table[prompt] for prompt in order] for table in group]) for group in tables)
    plain = _difference(PLAIN, one, other)
    drift = 0.0 if plain is None else abs(math.log(plain.ratio))
    found = [_difference(figure, one, other, drift * DRIFTS.get(figure.name, 0)) for figure in FIGURES]
    return [difference for difference in (*found, plain) if difference is not None], len(order)


def _nothing_shared(got: str) -> InputError:
    return InputError(
        "folders", expected="groups of runs over the same prompts", got=got,
        fix="run all with the same prompts=... and prompts.limit",
    )  # fmt: skip


def _difference(figure: Figure, first: np.ndarray, second: np.ndarray, drift: float = 0.0) -> Difference | None:
    """first, second: [runs prompts quantities]; drift: of the machine, as the logarithm of a ratio."""
    of_first, of_second = (float(figure.of(group.sum((0, 1)))) for group in (first, second))
    if not all(math.isfinite(value) and value > 0 for value in (of_first, of_second)):
        return None
    values, prompts = (of_first, of_second, of_second / of_first), first.shape[1]
    if prompts == 1:
        return Difference(figure.name, *values, None, None, _too_few(prompts))
    logs = np.log(_of_resamples(figure, second, 2) / _of_resamples(figure, first, 1))
    logs = logs[np.isfinite(logs)]
    lower, upper = np.quantile(logs, [0.025, 0.975]).tolist()
    interval = low, high = math.exp(lower - drift), math.exp(upper + drift)
    if prompts < FEWEST:
        return Difference(figure.name, *values, interval, None, _too_few(prompts))
    visible = math.exp(POWER * float(logs.std()) + drift)
    return Difference(figure.name, *values, interval, visible, _verdict(figure, low, high, visible))


def _of_resamples(figure: Figure, group: np.ndarray, stream: int) -> np.ndarray:
    """The figure of `RESAMPLES` resamples; both groups draw the same prompts, each its own runs."""
    return figure.of(resampled(np.moveaxis(group, -1, 0), RESAMPLES, stream).T)


def _too_few(prompts: int) -> str:
    return f"too few prompts to tell ({prompts} of {FEWEST})"


def _verdict(figure: Figure, low: float, high: float, visible: float) -> str:
    if low > 1:
        return f"the second is {figure.better}"
    if high < 1:
        return f"the first is {figure.better}"
    if low == high == 1:
        return "equal"
    return f"no difference was seen; one of {visible - 1:.1%} would have been, 80 times in 100"


def _by_seed(run: Run) -> list[dict[Prompt, np.ndarray]]:
    """Sums of the quantities by prompt, over the run's repeats, for each of its seeds; NaN for what it lacks."""
    run.refresh()
    seeds: dict[object, dict[Prompt, np.ndarray]] = {}
    for generation in run.generations:
        prompt, turn = str(generation.get("prompt")), int(generation.get("turn", 0))
        key = TextKey(prompt, str(generation.get("category")), turn, int(generation.get("repeat", 0)))
        records = run.texts.get(key, [])
        of_seed = seeds.setdefault(generation.get("seed"), {})
        row = of_seed.setdefault((prompt, turn, str(generation.get("prompt_text", ""))), np.zeros(len(QUANTITIES)))
        row += (
            sum(record.emitted for record in records),
            len(records),
            sum(record.accepted for record in records),
            sum(record.offered for record in records),
            *_times(generation),
        )
    return list(seeds.values())


def _times(generation: Mapping[str, object]) -> tuple[float, float, float, float]:
    """Tokens and seconds, then those of the baseline; an older version noted its tokens only by saying `identical`."""
    seconds, tokens = generation.get("seconds"), generation.get("tokens")
    if not isinstance(seconds, Mapping):
        return (math.nan,) * 4
    count = len(tokens) if isinstance(tokens, Sequence) else math.nan
    base = generation.get("baseline_tokens", count if generation.get("identical") else math.nan)
    base_count = float(base) if isinstance(base, int | float) else math.nan
    return (
        count,
        float(seconds.get("speculative", math.nan)),
        base_count,
        float(seconds.get("autoregressive", math.nan)),
    )
