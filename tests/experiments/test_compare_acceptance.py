"""The two comparisons of acceptance rules: on a model's trees, and exactly on synthetic p and q."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import compare_acceptance

TINY = ["target=tiny", "target.device=cpu", "prompts.limit=2", "generation.max_new_tokens=4", "draws=2"]


def test_rules_are_compared_on_the_same_trees(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, summary, out = call(compare_acceptance.main, *TINY, "temperatures=[0.0,1.0]")
    assert status == 0
    results = {(r["trees"], r["rule"], r["temperature"]): r for r in summary["results"]}
    assert {r["judgements"] for r in summary["results"]} == {2 * 4 * 2}  # prompts, positions, draws
    for kind, rules in (("with replacement", ("exact", "spectr", "traversal")), ("chain", ("exact", "block"))):
        taus = {results[kind, rule, 0.0]["tokens_per_step"] for rule in rules}
        assert len(taus) == 1, "at temperature 0 all lossless rules keep the argmax's path"
    assert not results["chain", "typical", 1.0]["lossless"]
    assert all(word in out for word in ("without_replacement", "τ at T=1.0", "accept"))
    assert "<html>" in (tmp_path / "acceptance.html").read_text("utf-8")


def test_the_study_is_exact_where_the_answer_is_known(call: Callable[..., tuple]) -> None:
    options = ["study.widths=[1,1]", "study.vocab=3", "study.cases=2", "study.distances=[0.0,1.0]"]
    status, summary, out = call(
        compare_acceptance.main,
        "synthetic=true",
        *options,
        "study.rules=[with_replacement/exact,with_replacement/block]",
    )
    assert status == 0
    for result in summary["results"]:
        if result["distance"] == 0:
            assert result["total_variation"] == 0
            assert result["accepted"] == pytest.approx(2.0, abs=1e-12)  # p is q: everything is accepted
    exact, block = (r["accepted"] for r in summary["results"] if r["distance"] == 1)
    assert exact < block < 2
    assert "expected accepted length" in out


def test_one_drafted_token_is_accepted_as_often_as_p_and_q_overlap(call: Callable[..., tuple]) -> None:
    options = [
        "study.widths=[1]",
        "study.vocab=5",
        "study.cases=3",
        "study.distances=[0.5]",
        "study.rules=[with_replacement/exact,with_replacement/spectr]",
    ]
    _, summary, _ = call(compare_acceptance.main, "synthetic=true", *options)
    for result in summary["results"]:
        assert result["accepted"] == pytest.approx(1 - result["total_variation"], abs=1e-12)


def test_an_unknown_way_of_drawing_is_named(call: Callable[..., tuple]) -> None:
    status, _, out = call(compare_acceptance.main, "synthetic=true", "study.rules=[twins/exact]")
    assert status == 2
    assert "error: drafter.children: expected one of with_replacement, without_replacement, top_k, got 'twins'" in out


def test_an_unknown_rule_is_named(call: Callable[..., tuple]) -> None:
    status, _, out = call(compare_acceptance.main, "synthetic=true", "study.rules=[with_replacement/exakt]")
    assert status == 2
    assert "error: rules: expected one of block, exact, forced, greedy, " in out


def test_a_study_too_large_to_enumerate_is_refused(call: Callable[..., tuple]) -> None:
    status, summary, out = call(compare_acceptance.main, "synthetic=true", "study.widths=[4,4]", "study.vocab=8")
    assert (status, summary) == (2, {})
    assert (
        "error: study.widths and study.vocab: expected at most 300,000 different trees, got 1,152,921,504,606,846,976"
        in out
    )
