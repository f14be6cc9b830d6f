"""`python -m experiments.check_rule` as a command: a rule, a function, and what cannot be checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import check_rule

SMALL = ["nodes=2", "depth=2", "vocabularies=[2]"]
FUNCTIONS = """
def first(p, q, draft, uniforms):
    u, edge = uniforms[0], 0.0
    for token in range(len(p[0]) - 1):
        edge += p[0, token]
        if u < edge:
            return [token]
    return [len(p[0]) - 1]


def keeps(p, q, draft, uniforms):
    return [*draft, 0]
"""


def test_an_exact_rule(call: Callable[..., tuple]) -> None:
    status, summary, out = call(check_rule.main, "acceptance=block", *SMALL)
    assert status == 0, out
    assert summary["exact"] is True
    assert "EXACT on" in out
    assert "CANNOT" not in out


def test_a_lossy_rule_is_labelled_with_its_price(call: Callable[..., tuple]) -> None:
    status, summary, out = call(check_rule.main, "acceptance=hsd", "acceptance.capped=false", *SMALL)
    assert status == 0, out
    assert summary["declared_lossless"] is False
    assert summary["total_variation"] > 0.1
    words = " ".join(out.split())
    assert "LOSSY, as it declares: total variation up to" in words
    assert "p = (1/3, 2/3), q = (2/3, 1/3)" in words


def test_functions(call: Callable[..., tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper_functions.py").write_text(FUNCTIONS, "utf-8")
    monkeypatch.chdir(tmp_path)
    status, summary, out = call(check_rule.main, "function=paper_functions:first", *SMALL)
    assert (status, summary["exact"]) == (0, True), out
    status, summary, out = call(check_rule.main, "function=paper_functions:keeps", *SMALL)
    assert (status, summary["exact"]) == (2, False)
    assert "error: function=paper_functions:keeps: expected a rule that keeps the target's distribution, got" in out
    assert "comes with" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "acceptance: expected a rule or a function, got neither; pass acceptance=... or function=..."),
        (["acceptance=block", "function=a:b"], "acceptance: expected a rule or a function, got both"),
        (["function=nowhere_at_all:x"], "function: expected a module 'nowhere_at_all' that can be imported, got Mod"),
        (["function=math"], "function: expected module:name, got 'math'"),
        (["function=math:nothing"], "function: expected a function 'nothing' in 'math', got none"),
        (["acceptance=block", "nodes=9"], "nodes: expected 1 to 7, got 9; outcomes grow as their power"),
        (["acceptance=block", "vocabularies=[3,9]"], "vocabularies: expected 2 to 5, got 9"),
        (["acceptance=block", "vocabularies=[]"], "vocabularies: expected at least one, got none"),
    ],
)
def test_bad_input(call: Callable[..., tuple], words: list[str], said: str) -> None:
    status, _, out = call(check_rule.main, *words)
    assert status == 2
    assert f"error: {said}" in out
