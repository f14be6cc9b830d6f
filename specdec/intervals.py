"""95 % bootstrap intervals of ratios over prompts and runs, and of medians over repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]
Column = Sequence[float] | np.ndarray  # one entry per prompt, or [runs prompts] for several runs


def bootstrap(
    columns: Sequence[Column] | np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], resamples: int = 2000
) -> tuple[float, Interval | None]:
    """Return a statistic of sums, with its 95 % percentile bootstrap interval over prompts and runs.

    Args:
        columns: [quantities prompts], or [quantities runs prompts].
        statistic: maps sums [quantities samples] to values [samples].
        resamples: number of bootstrap samples.

    Returns:
        The statistic of the sums over all data, and its interval (None for one prompt of one run).
    """
    data = np.array(columns, dtype=np.float64)
    data = data[:, None] if data.ndim == 2 else data
    whole = float(statistic(data.sum((1, 2))[:, None])[0])
    if data[0].size == 1:
        return whole, None
    values = statistic(resampled(data, resamples))
    low, high = np.quantile(values, [0.025, 0.975])
    return whole, (float(low), float(high))


def resampled(data: np.ndarray, resamples: int, stream: int = 1) -> np.ndarray:
    """Return sums over resampled prompts and, independently, resampled runs (bootstrap at two levels).

    Args:
        data: [quantities runs prompts].
        resamples: number of bootstrap samples.
        stream: seed of the draws of runs. Prompts are always drawn with seed 0, so that groups of runs are paired by
            prompt.

    Returns:
        Sums, [quantities resamples].
    """
    _, runs, prompts = data.shape
    drawn = [np.random.default_rng(s).integers(n, size=(resamples, n)) for s, n in ((stream, runs), (0, prompts))]
    counts = [np.stack([np.bincount(row, minlength=d.shape[1]) for row in d]) for d in drawn]
    return np.asarray(np.einsum("sr,sp,qrp->qs", *counts, data, optimize=True))


def bootstrap_speedup(
    tokens: Column, seconds: Column, base_tokens: Column, base_seconds: Column
) -> tuple[float, Interval | None]:
    """Return the ratio of tokens/s, paired by prompt, with its 95 % interval.

    Args:
        tokens, seconds: new tokens and time of each prompt with the method.
        base_tokens, base_seconds: the same with the baseline.
    """
    return bootstrap(
        np.array([tokens, seconds, base_tokens, base_seconds], dtype=np.float64),
        lambda s: (s[0] / s[1]) / (s[2] / s[3]),
    )


def bootstrap_tau(emitted: Column, steps: Column) -> tuple[float, Interval | None]:
    """Return tokens per step, with its 95 % interval over prompts."""
    return bootstrap(np.array([emitted, steps], dtype=np.float64), lambda s: s[0] / s[1])


def median_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, Interval | None]:
    """Return the median of repeated measurements, with its 95 % percentile bootstrap interval (None for only one)."""
    data = np.array(values, dtype=np.float64)
    if len(data) == 1:
        return float(data[0]), None
    picks = np.random.default_rng(0).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(np.median(data[picks], axis=1), [0.025, 0.975])
    return float(np.median(data)), (float(low), float(high))
