"""Every metric, defined once. Tables, trackers, dashboards and the README only read from here.

Words (per step and row unless said otherwise):
    offered    depth of the deepest drafted node (cut where the text ended inside the block)
    accepted   drafted tokens that were kept
    emitted    accepted + the one token the target sampled after them, after truncation at the text's end

    tokens per step, tau (MAT)   sum of emitted / steps; plain autoregressive decoding is exactly 1.0
    acceptance length            tau - 1
    acceptance at depth d        P(accepted >= d, given accepted >= d - 1 and offered >= d)
    acceptance rate              sum of accepted / sum of offered (a chain: accepted / drafted)
    draft efficiency             sum of accepted / sum of nodes drafted (the root is not drafted)
    speedup                      tokens/s over tokens/s of our autoregressive loop, side by side

The first token of a text comes from the prompt's forward and belongs to no step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

PHASES = ("draft", "verify", "accept", "commit")


@dataclass(frozen=True)
class StepRecord:
    """One step of one row. nodes: drafted nodes; path: kept nodes of the tree, root first; tokens: emitted
    token ids; live: rows that were still generating; ms: the step's time by phase, shared by its rows."""

    row: int
    step: int
    live: int
    nodes: int
    offered: int
    accepted: int
    emitted: int
    path: list[int]
    tokens: list[int]
    ms: dict[str, float]


@dataclass(frozen=True)
class StepMetrics:
    """What a set of step records says; None where nothing was offered."""

    tokens: int
    steps: int
    tokens_per_step: float | None
    acceptance_length: float | None
    acceptance_rate: float | None
    acceptance_at_depth: list[float]
    draft_efficiency: float | None
    phase_ms: dict[str, float]

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> StepMetrics:
        emitted, accepted = sum(r.emitted for r in records), sum(r.accepted for r in records)
        tau = _ratio(emitted, len(records))
        return cls(
            tokens=emitted,
            steps=len(records),
            tokens_per_step=tau,
            acceptance_length=None if tau is None else tau - 1,
            acceptance_rate=_ratio(accepted, sum(r.offered for r in records)),
            acceptance_at_depth=acceptance_at_depth(records),
            draft_efficiency=_ratio(accepted, sum(r.nodes for r in records)),
            phase_ms=phase_ms(records),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def acceptance_at_depth(records: Sequence[StepRecord]) -> list[float]:
    """Entry d - 1: P(accepted >= d | accepted >= d - 1, offered >= d), down to the last depth reached."""
    rates = []
    for depth in range(1, max((r.offered for r in records), default=0) + 1):
        tried = [r for r in records if r.offered >= depth and r.accepted >= depth - 1]
        if not tried:
            break
        rates.append(sum(r.accepted >= depth for r in tried) / len(tried))
    return rates


def phase_ms(records: Sequence[StepRecord]) -> dict[str, float]:
    """Mean milliseconds per step of the batch in each phase; a step of several live rows counts once."""
    steps = sum(1 / r.live for r in records)
    return {p: sum(r.ms[p] / r.live for r in records) / steps if steps else 0.0 for p in PHASES}


Interval = tuple[float, float]


def bootstrap(
    columns: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], np.ndarray], resamples: int = 2000
) -> tuple[float, Interval | None]:
    """A statistic of sums over prompts, and its 95 % percentile interval from resampling prompts, where there are at
    least two. columns: one sequence per quantity, one entry per prompt; statistic: gets [quantities samples]."""
    data = np.array(columns, dtype=np.float64)
    count = data.shape[1]
    picks = np.random.default_rng(0).integers(count, size=(resamples, count))
    values = statistic(np.concatenate([data.sum(1)[:, None], data[:, picks].sum(2)], axis=1))  # the whole comes first
    if count == 1:
        return float(values[0]), None
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(values[0]), (float(low), float(high))


def bootstrap_speedup(
    tokens: Sequence[float], seconds: Sequence[float], base_tokens: Sequence[float], base_seconds: Sequence[float]
) -> tuple[float, Interval | None]:
    """Ratio of tokens/s, paired by prompt."""
    return bootstrap([tokens, seconds, base_tokens, base_seconds], lambda s: (s[0] / s[1]) / (s[2] / s[3]))


def bootstrap_tau(emitted: Sequence[float], steps: Sequence[float]) -> tuple[float, Interval | None]:
    """Tokens per step."""
    return bootstrap([emitted, steps], lambda s: s[0] / s[1])


def median_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, Interval | None]:
    """Median of repeated measurements, and its 95 % percentile bootstrap interval, where there are at least two."""
    data = np.array(values, dtype=np.float64)
    if len(data) == 1:
        return float(data[0]), None
    picks = np.random.default_rng(0).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(np.median(data[picks], axis=1), [0.025, 0.975])
    return float(np.median(data)), (float(low), float(high))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class PhaseClock:
    """Time by phase. On CUDA it records events and reads them one step later, so that measuring never
    waits for the device; a step's dict is then filled after the fact."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._open: list[tuple[list[tuple[str, Any]], dict[str, float]]] = []

    def start(self) -> None:
        self._marks = [("", self._now())]

    def lap(self, phase: str) -> None:
        """The time since the last mark was spent in `phase`."""
        self._marks.append((phase, self._now()))

    def take(self) -> dict[str, float]:
        """Milliseconds by phase since the last `start` or `take`."""
        step: dict[str, float] = {}
        self._resolve()
        self._open.append((self._marks, step))
        self._marks = self._marks[-1:]
        if not self._cuda:
            self._resolve()
        return step

    def finish(self) -> None:
        """Wait for the device and fill in what is still open."""
        if self._cuda:
            torch.cuda.synchronize()
        self._resolve()

    def _resolve(self) -> None:
        for marks, step in self._open:
            for (_, before), (phase, after) in pairwise(marks):
                ms = before.elapsed_time(after) if self._cuda else (after - before) * 1e3
                step[phase] = step.get(phase, 0.0) + ms
        self._open = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
