"""Every metric on records computed by hand."""

from __future__ import annotations

import pytest

from specdec.metrics import NodeUse, StepMetrics, StepRecord, along_text, tree_use


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


def walked(parents: list[int], path: list[int], offered: int, emitted: int) -> StepRecord:
    return StepRecord(
        0,
        1,
        1,
        sum(p >= 0 for p in parents),
        offered,
        len(path) - 1,
        emitted,
        path,
        [1] * emitted,
        {"draft": 0.0, "verify": 10.0, "accept": 0.0, "commit": 0.0},
        parents,
    )


def test_what_became_of_each_node() -> None:
    # a root with two children, the first of which has two; then a chain of two; then a text that ended after depth 1
    records = [
        walked([-1, 0, 0, 1, 1], [0, 1, 4], 2, 3),
        walked([-1, 0, 1, -1], [0], 2, 1),
        walked([-1, 0, 1], [0, 1], 1, 1),
    ]
    assert tree_use(records) == [
        NodeUse((0,), 3, 2, 2 / 3, 2 / 3),
        NodeUse((1,), 1, 0, 0.0, 0.0),
        NodeUse((0, 0), 2, 0, 0.0, 0.0),
        NodeUse((0, 1), 1, 1, 1.0, 1 / 3),
    ]
    assert sum(use.contribution for use in tree_use(records)) == StepMetrics.of(records).acceptance_rate * 5 / 3
    assert [record.closing for record in records] == ["bonus", "recovered", None]
    assert record(0, 0, 1, 0).closing == "undrafted"
    assert StepMetrics.of(records).emitted_histogram == [2, 0, 1]
    assert StepMetrics.of(records).nodes_per_step == 8 / 3


def test_speed_along_the_text() -> None:
    quick, slow = walked([-1, 0], [0, 1], 1, 2), walked([-1, 0], [0], 1, 1)
    stretches = along_text([[quick, quick, slow], [slow, slow]], stretches=2)  # steps begin at 1, 3, 5 and at 1, 2
    assert [(s.first, s.last, s.steps, s.tokens_per_step) for s in stretches] == [(0, 2, 3, 4 / 3), (3, 5, 2, 1.5)]
    assert stretches[0].tokens_per_second == pytest.approx(1e3 * 4 / 30)
    assert along_text([]) == []


def test_plain_decoding_is_exactly_one_token_per_step() -> None:
    metrics = StepMetrics.of([record(0, 0, 1, 0)] * 5)
    assert (metrics.tokens_per_step, metrics.acceptance_length) == (1.0, 0.0)
    assert (metrics.acceptance_rate, metrics.draft_efficiency, metrics.acceptance_at_depth) == (None, None, [])


def test_no_records_no_figures() -> None:
    assert StepMetrics.of([]).tokens_per_step is None


def test_a_batch_step_counts_its_time_once() -> None:
    batch_step = [record(1, 0, 1, 1, live=2, verify=30.0)] * 2
    assert StepMetrics.of([*batch_step, record(1, 0, 1, 1, verify=10.0)]).phase_ms["verify"] == pytest.approx(20.0)
