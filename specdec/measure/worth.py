"""Measure a drafter on some prompts: three figures with intervals, any of which a search can maximise.

Prompts run one after the other, so that a search can stop early with a poor setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from specdec.decoding.decoder import Decoder
from specdec.intervals import Interval, bootstrap, bootstrap_speedup, bootstrap_tau

FIGURES = ("speedup", "tokens_per_step", "tokens_per_second")


class Sample(NamedTuple):
    """Results of one prompt, or of several prompts in one batch, which have only a common time.

    Args:
        emitted: tokens emitted by steps, without the first token of each text.
        steps: number of steps.
        tokens, seconds: new tokens and time with drafts.
        base_tokens, base_seconds: new tokens and time of plain decoding.
    """

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
    """Yield one sample per prompt (token ids). Decoding with drafts and plain decoding take turns in going first."""
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
    """Return each of `FIGURES` over the sum of the samples, and its 95 % bootstrap interval as NAME_ci95.

    Args:
        found: samples; all of the first run, then all of the next.
        runs: number of runs of the same prompts, with different seeds. Runs are resampled as well as samples.

    Returns:
        Figures by name. The interval of a single sample is None.
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
