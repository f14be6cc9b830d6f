"""What a drafter is worth on some prompts: three figures, any of which a search can maximise, each with its interval.

Prompts are taken one after the other, so that a search may give a setting up after a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from specdec.decoding.decoder import Decoder
from specdec.metrics import Interval, bootstrap, bootstrap_speedup, bootstrap_tau

FIGURES = ("speedup", "tokens_per_step", "tokens_per_second")


class Sample(NamedTuple):
    """One prompt, or several whose time cannot be told apart. emitted: tokens of the steps; tokens: all new ones."""

    emitted: float
    steps: float
    tokens: float
    seconds: float
    base_tokens: float
    base_seconds: float


def worth_of(prompts: Sequence[list[int]], decoder: Decoder) -> dict[str, float | Interval | None]:
    """Return `figures` of the `samples` of all prompts."""
    return figures(samples(prompts, decoder))


def samples(prompts: Sequence[list[int]], decoder: Decoder) -> Iterator[Sample]:
    """Yield a sample per prompt (token ids), as it is made: with drafts and without take turns in going first."""
    for number, prompt in enumerate(prompts):
        seeds = [[0, number]]
        if number % 2:
            base = decoder.autoregressive([prompt], seeds)
        ours = decoder.speculative([prompt], seeds)
        if not number % 2:
            base = decoder.autoregressive([prompt], seeds)
        emitted = sum(step.emitted for step in ours.steps)
        new, base_new = (len(done.texts[0]) for done in (ours, base))
        yield Sample(emitted, len(ours.steps), new, ours.seconds, base_new, base.seconds)


def figures(found: Iterable[Sample], runs: int = 1) -> dict[str, float | Interval | None]:
    """Return each of `FIGURES` over the sum of the samples, and as NAME_ci95 its 95 % interval from resampling them
    (None for a single one).

    Args:
        found: samples, those of one run after those of another.
        runs: how many times the same prompts were run, under another seed each; these are resampled as well.
    """
    columns = np.array(list(found), dtype=np.float64).T
    emitted, steps, tokens, seconds, base_tokens, base_seconds = columns.reshape(len(columns), runs, -1)
    rate, rate_interval = bootstrap([tokens, seconds], lambda s: s[0] / s[1])
    speedup, speedup_interval = bootstrap_speedup(tokens, seconds, base_tokens, base_seconds)
    tau, tau_interval = bootstrap_tau(emitted, steps) if np.all(steps) else (1.0, None)  # texts of one token: no steps
    return {
        "speedup": speedup,
        "speedup_ci95": speedup_interval,
        "tokens_per_step": tau,
        "tokens_per_step_ci95": tau_interval,
        "tokens_per_second": rate,
        "tokens_per_second_ci95": rate_interval,
    }
