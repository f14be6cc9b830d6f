"""Summarise a benchmark: its figures as a whole, by category and by seed."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from specdec.decoding.decoder import Decoder
from specdec.measure.divergence import divergence, strays
from specdec.measure.profiling import plain_read_ms
from specdec.measure.quiet import Conditions
from specdec.measure.trials import BASE, OURS, Results, Trial, batch_samples, speedup_over, tokens_per_second
from specdec.measure.worth import figures
from specdec.metrics import StepMetrics, bandwidth_share
from specdec.runs.summary import Figures, Quiet, Rival, Summary


def summarise(results: Results, decoder: Decoder, references: Sequence[str]) -> Summary:
    """Return the summary of a run, without its setting.

    Args:
        results: everything that was measured.
        decoder: the decoder that made the texts.
        references: names of the other methods that were timed.
    """

    def by(part: Callable[[Trial], str]) -> dict[str, Figures]:
        names = dict.fromkeys(map(part, results.trials))
        return {name: _figures(results.part(part, name), decoder, references) for name in names}

    whole, seeds = _figures(results, decoder, references), {trial.seed for trial in results.trials}
    return Summary(
        **vars(whole),
        bandwidth_share=bandwidth_share(plain_read_ms(decoder.target), whole.phase_ms["verify"]),
        by_category=by(lambda trial: trial.prompt.category),
        by_seed=by(lambda trial: str(trial.seed)) if len(seeds) > 1 else {},
        peak_memory_mb=_peak_memory_mb(decoder.target.device),
    )


def _figures(results: Results, decoder: Decoder, references: Sequence[str]) -> Figures:
    trials = results.trials
    speedup, interval = speedup_over(BASE, OURS, trials)
    worth: dict[str, Any] = figures(batch_samples(trials), len({trial.seed for trial in trials}))
    rivals = [_rival(name, trials, decoder) for name in references]
    return Figures(
        prompts=len({trial.place for trial in trials}),
        **StepMetrics.of(results.steps).as_dict(),
        new_tokens=sum(len(trial.texts[OURS]) for trial in trials),
        tokens_per_second=tokens_per_second(trials, OURS),
        autoregressive_tokens_per_second=tokens_per_second(trials, BASE),
        speedup=speedup,
        speedup_ci95=interval,
        **{name: worth[name] for name in ("tokens_per_step_ci95", "tokens_per_second_ci95")},
        reference=rivals[0] if rivals else None,
        other_references=rivals[1:],
        divergence=divergence(trials, decoder),
        strays=strays(trials, decoder),
    )


def _rival(name: str, trials: Sequence[Trial], decoder: Decoder) -> Rival:
    speedup, interval = speedup_over(name, OURS, trials)
    identical = sum(t.texts[OURS] == t.texts[name] for t in trials) if decoder.sampling.greedy else None
    speed = tokens_per_second(trials, name)
    return Rival(name=name, tokens_per_second=speed, speedup=speedup, speedup_ci95=interval, identical=identical)


def quietness(trials: Sequence[Trial], repeated: int) -> Quiet:
    """Return how disturbed the machine was, and the energy of each method.

    Args:
        trials: all trials of the run.
        repeated: number of rounds that were repeated.
    """
    rounds = {(t.repeat, t.batch, t.turn): t.conditions for t in trials}
    reasons = [(c.others + c.stolen, c.disturbed) for of_round in rounds.values() for c in of_round.values()]
    methods = dict.fromkeys(name for of_round in rounds.values() for name in of_round)
    return Quiet(
        rounds=len(rounds),
        disturbed=sum(any(c.disturbed for c in of_round.values()) for of_round in rounds.values()),
        repeated=repeated,
        worst=max(((share, line) for share, line in reasons if line), default=(0.0, None))[1],
        joules_per_token={name: _joules_per_token(name, list(rounds.values()), trials) for name in methods},
    )


def _joules_per_token(method: str, rounds: Sequence[Mapping[str, Conditions]], trials: Sequence[Trial]) -> float | None:
    spent = [of_round[method].joules for of_round in rounds]
    known = [value for value in spent if value is not None]
    tokens = sum(len(t.texts[method]) for t in trials)
    return sum(known) / tokens if len(known) == len(spent) and tokens else None


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
