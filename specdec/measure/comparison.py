"""Test whether two groups of runs differ, paired over prompts, and report the smallest detectable difference.

A group is one run, or several runs with the same configuration and different seeds. Both groups answer the same
prompts, and a hard prompt is hard for both. Therefore prompts are resampled in pairs, and the runs within each group
(Efron's bootstrap at two levels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdec.errors import InputError
from specdec.intervals import Interval, resampled
from specdec.runs.read import Run, TextKey

RESAMPLES = 4000
FEWEST = 6  # prompts; with fewer, all differ in the same direction by chance in more than 5 % of experiments
POWER = 1.96 + 0.84  # standard errors; such a difference is found in 80 % of experiments, at 5 % false alarms
QUANTITIES = ("emitted", "steps", "accepted", "offered", "tokens", "seconds", "base_tokens", "base_seconds")
Prompt = tuple[str, int, str]  # id, turn and text; the text, because two sets may use the same ids
Sums = np.ndarray  # [... quantities]


@dataclass(frozen=True)
class Figure:
    """A ratio of sums over prompts.

    Args:
        name: name in tables.
        of: maps sums [... quantities] to the figure [...]; NaN if a run did not record it.
        better: word for a larger value, such as "faster".
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
PLAIN = Figure("plain tokens/s", _plain, "faster, whatever drafts")  # the same work in both groups
DRIFTS = {"tokens/s": 2, "speedup": 1}  # factor of the machine's drift in a figure, see `compare`


@dataclass(frozen=True)
class Difference:
    """One figure of two groups.

    Args:
        name: name of the figure.
        first, second: its value in each group.
        ratio: second / first.
        interval: 95 % interval of the ratio, widened by the drift for figures of time; None for a single prompt.
        visible: smallest ratio above 1 that this comparison would find in 80 % of experiments; None with too few
            prompts.
        verdict: the result as a sentence.
    """

    name: str
    first: float
    second: float
    ratio: float
    interval: Interval | None
    visible: float | None
    verdict: str


def compare(first: Sequence[Run], second: Sequence[Run]) -> tuple[list[Difference], int]:
    """Return every figure that both groups recorded, and the number of common prompts (every turn counts as one).

    The state of the machine changes between runs, and resampling prompts does not show that. Plain decoding is the same
    work in both groups, so its ratio is used as the machine's drift. A machine that is 10 % slower may slow drafting
    and verifying by 10 % more than plain decoding. Therefore speedups must differ by more than the drift; and tokens/s,
    which is speedup x plain tokens/s, by more than twice the drift.

    Raises:
        InputError: the groups have no prompt in common.
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
    """Return the comparison of one figure, or None if a group did not record it.

    Args:
        figure: the figure.
        first, second: sums of each group, [runs prompts quantities].
        drift: drift of the machine, the logarithm of a ratio.
    """
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
    """Return the figure of `RESAMPLES` resamples. Both groups draw the same prompts, but their own runs."""
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
    """Return for each seed of a run the sums of the quantities by prompt, over its repeats; NaN if not recorded."""
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
    """Return tokens and seconds, then those of the baseline.

    Older versions did not record the baseline's tokens. If `identical` is true, there were as many.
    """
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
