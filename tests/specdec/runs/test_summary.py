"""The schema of summary.json: what is read back, and what is left out."""

from __future__ import annotations

import json
from dataclasses import fields

from specdec.metrics import StepMetrics
from specdec.runs.summary import Divergence, Figures, LeftOut, Parting, Quiet, Rival, Strays, Summary, completed

WHOLE = Summary(
    target="tiny",
    seeds=[0, 2**63 - 1],
    lossless=False,
    temperature=0.5,
    speedup=2,
    speedup_ci95=(1.5, 2.5),
    phase_ms={"draft": 0.0},
    reference=Rival(name="generate", identical=3),
    other_references=[Rival(name="lookup")],
    divergence=Divergence(identical=1, total=2, prompts=[Parting(prompt="a", tokens=[[1], []], explained=True)]),
    strays=Strays(mean_logprob=-1.5),
    by_category={"math": Figures(prompts=1, tokens_per_step_ci95=(1.0, 2.0))},
    quiet=Quiet(rounds=2, joules_per_token={"speculative": None}),
    skipped=[LeftOut(prompt="b", tokens=9, room=8)],
    missing_references={"llama": "not installed"},
)


def read(found: object) -> tuple[Summary, list[str]]:
    return Summary.read(json.loads(json.dumps(found)))


def test_a_summary_comes_back_as_it_was_written() -> None:
    assert read(WHOLE.as_dict()) == (WHOLE, [])
    assert WHOLE.rivals == [Rival(name="generate", identical=3), Rival(name="lookup")]


def test_every_metric_of_steps_is_a_figure() -> None:
    assert set(StepMetrics.__dataclass_fields__) <= {field.name for field in fields(Figures)}


def test_missing_and_unknown_keys_are_no_error() -> None:
    assert read({"speedup": 2.0, "from a later version": {}}) == (Summary(speedup=2.0), [])
    assert read([1]) == (Summary(), ["everything"])


def test_values_of_a_wrong_type_are_left_out_and_named() -> None:
    wrong = {
        "tokens": "1", "steps": True, "speedup": float("inf"), "speedup_ci95": [1.0], "emitted_histogram": [-1],
        "phase_ms": {"draft": -1.0}, "lossless": 1, "divergence": 3, "reference": {"name": 1, "speedup": 1.5},
        "by_category": {"a": {"speedup": [], "tokens": 3}, "b": 1}, "skipped": [{"tokens": "x", "room": 8}],
    }  # fmt: skip
    kept, named = read({"target": "tiny", **wrong})
    assert kept == Summary(
        target="tiny",
        reference=Rival(speedup=1.5),
        by_category={"a": Figures(tokens=3)},
        skipped=[LeftOut(room=8)],
    )
    assert sorted(named) == [
        "by_category.a.speedup", "by_category.b", "divergence", "emitted_histogram", "lossless", "phase_ms",
        "reference.name", "skipped.0.tokens", "speedup", "speedup_ci95", "steps", "tokens",
    ]  # fmt: skip


def test_missing_metrics_come_from_the_steps() -> None:
    found = completed(Figures(tokens_per_step=3.0), [])
    assert (found.tokens_per_step, found.tokens, found.steps) == (3.0, 0, 0)
