"""Every metric on records computed by hand."""

from __future__ import annotations

import pytest
import torch

from specdec.metrics import PhaseClock, StepMetrics, StepRecord, bootstrap_speedup


def record(offered: int, accepted: int, emitted: int, nodes: int, live: int = 1, verify: float = 10.0) -> StepRecord:
    ms = {"draft": 1.0, "verify": verify, "accept": 0.5, "commit": 0.25}
    return StepRecord(0, 1, live, nodes, offered, accepted, emitted, [0], [1] * emitted, ms)


def test_a_hand_computed_run() -> None:
    # a tree of depth 3 with 5 nodes, two chains of 2 (one fully accepted, one rejected), one step without a draft
    records = [record(3, 1, 2, 5), record(2, 2, 3, 2), record(2, 0, 1, 2), record(0, 0, 1, 0)]
    metrics = StepMetrics.of(records)
    assert (metrics.tokens, metrics.steps) == (7, 4)
    assert metrics.tokens_per_step == 7 / 4
    assert metrics.acceptance_length == 3 / 4
    assert metrics.acceptance_rate == 3 / 7  # accepted 1 + 2 + 0 of depths 3 + 2 + 2
    assert metrics.draft_efficiency == 3 / 9
    # depth 1 was offered three times and kept twice; depth 2 after it twice, kept once; depth 3 never reached
    assert metrics.acceptance_at_depth == [2 / 3, 1 / 2]


def test_plain_decoding_is_exactly_one_token_per_step() -> None:
    metrics = StepMetrics.of([record(0, 0, 1, 0)] * 5)
    assert (metrics.tokens_per_step, metrics.acceptance_length) == (1.0, 0.0)
    assert (metrics.acceptance_rate, metrics.draft_efficiency, metrics.acceptance_at_depth) == (None, None, [])


def test_no_records_no_figures() -> None:
    assert StepMetrics.of([]).tokens_per_step is None


def test_a_batch_step_counts_its_time_once() -> None:
    batch_step = [record(1, 0, 1, 1, live=2, verify=30.0)] * 2
    assert StepMetrics.of([*batch_step, record(1, 0, 1, 1, verify=10.0)]).phase_ms["verify"] == pytest.approx(20.0)


def test_speedup_is_the_ratio_of_totals_with_an_interval_around_it() -> None:
    ratio, interval = bootstrap_speedup([10, 30], [1, 2], [10, 30], [2, 6])
    assert ratio == pytest.approx((40 / 3) / (40 / 8))
    assert interval is not None
    assert interval == pytest.approx((2.0, 3.0))  # of two prompts with 2x and 3x, the extremes resample alone
    assert bootstrap_speedup([10], [1], [10], [2]) == (2.0, None)


def test_equal_methods_have_speedup_one() -> None:
    ratio, interval = bootstrap_speedup([5, 6, 7], [1, 2, 3], [5, 6, 7], [1, 2, 3])
    assert (ratio, interval) == (1.0, (1.0, 1.0))


def test_the_clock_adds_laps_to_phases() -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    clock.lap("draft")
    clock.lap("verify")
    first = clock.take()
    clock.lap("draft")
    assert set(first) == {"draft", "verify"}
    assert set(clock.take()) == {"draft"}
    assert all(ms >= 0 for ms in first.values())
