"""The texts of a benchmark with their times, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from specdec.intervals import Interval, bootstrap_speedup
from specdec.measure.quiet import Conditions
from specdec.measure.worth import Sample
from specdec.metrics import StepRecord
from specdec.prompts.sets import Prompt

OURS, BASE = "speculative", "autoregressive"


@dataclass(frozen=True)
class Trial:
    """One turn of one prompt in one repeat.

    Args:
        prompt: the prompt.
        place: index of the prompt in its set.
        turn: index of the turn in the conversation.
        repeat: index of the repeat, counted on over the seeds.
        batch: index of the batch. Rows of a batch run together, so batches are the unit of the bootstrap.
        ids: token ids of the encoded prompt, earlier turns included.
        texts: new token ids by method.
        seconds: time by method; the rows of a batch get equal shares of its time.
        emitted, steps: tokens and steps of the drafter's method.
        conditions: state of the machine by method.
        seed: seed of the sampling.
    """

    prompt: Prompt
    place: int
    turn: int
    repeat: int
    batch: int
    ids: list[int]
    texts: dict[str, list[int]]
    seconds: dict[str, float]
    emitted: int = 0
    steps: int = 0
    conditions: dict[str, Conditions] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """Results of all methods on one batch and turn, run one after the other.

    Args:
        texts: new token ids of each row, by method.
        seconds: time of the batch, by method.
        conditions: state of the machine meanwhile, by method.
        steps: step records of the drafter's method.
    """

    texts: dict[str, list[list[int]]]
    seconds: dict[str, float]
    conditions: dict[str, Conditions]
    steps: list[StepRecord]

    @property
    def disturbance(self) -> float:
        """Largest share of the machine that other processes took from one of the methods; 0 if none was disturbed."""
        return max(c.others + c.stolen if c.disturbed else 0.0 for c in self.conditions.values())


@dataclass(frozen=True)
class Results:
    """All trials of a run, and its step records; `origins[i]` is the trial that `steps[i]` belongs to."""

    trials: list[Trial] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    origins: list[Trial] = field(default_factory=list)

    def add(self, trials: Sequence[Trial], steps: Sequence[StepRecord]) -> None:
        """Add the trials of a batch, one per row, and its step records."""
        self.trials.extend(trials)
        self.steps.extend(steps)
        self.origins.extend(trials[step.row] for step in steps)

    def part(self, part_of: Callable[[Trial], str], name: str) -> Results:
        """Return the results of the trials for which `part_of` returns `name`."""
        pairs = [(s, origin) for s, origin in zip(self.steps, self.origins, strict=True) if part_of(origin) == name]
        return Results([t for t in self.trials if part_of(t) == name], [s for s, _ in pairs], [o for _, o in pairs])


def tokens_per_second(trials: Sequence[Trial], method: str) -> float:
    return sum(len(t.texts[method]) for t in trials) / sum(t.seconds[method] for t in trials)


def batch_samples(trials: Sequence[Trial]) -> list[Sample]:
    """Return the sums of each batch's trials under each seed: all batches of one seed, then those of the next."""
    sums: dict[tuple[int, int], Sample] = {}
    for t in trials:
        ours, base = ((len(t.texts[name]), t.seconds[name]) for name in (OURS, BASE))
        key, new = (t.seed, t.batch), (t.emitted, t.steps, *ours, *base)
        sums[key] = Sample(*(a + b for a, b in zip(sums.get(key, [0.0] * 6), new, strict=True)))
    return list(sums.values())


def speedup_over(other: str, method: str, trials: Sequence[Trial]) -> tuple[float, Interval | None]:
    """Return tokens/s of `method` / tokens/s of `other` on the same prompts, with its 95 % interval."""
    sums: dict[tuple[int, int], list[float]] = {}
    for t in trials:
        key = (t.seed, t.batch)
        new = [len(t.texts[method]), t.seconds[method], len(t.texts[other]), t.seconds[other]]
        sums[key] = [a + b for a, b in zip(sums.get(key, [0.0] * 4), new, strict=True)]
    columns = np.array(list(sums.values())).T.reshape(4, len({t.seed for t in trials}), -1)
    return bootstrap_speedup(*columns)
