"""Ratios against what is expected of them: the logic of the regression check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.measure.ratios import Ratio, expectations, read_expectations, shortfalls

SPEEDUP, COST = Ratio("ours / theirs", 2.0, (1.8, 2.2)), Ratio("verify / decode", 1.2, None, less=True)


def test_bounds_lie_on_the_worse_side() -> None:
    assert expectations([SPEEDUP, COST], tolerance=0.1) == {
        "ours / theirs": {"expected": 2.0, "at_least": 1.8},
        "verify / decode": {"expected": 1.2, "at_most": 1.32},
    }


def test_what_was_written_is_met_by_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    file.write_text(json.dumps({"ratios": expectations([SPEEDUP, COST], 0.0)}), "utf-8")
    assert shortfalls([SPEEDUP, COST], read_expectations(str(file))) == []


@pytest.mark.parametrize(
    ("value", "entry", "line"),
    [
        (1.79, {"at_least": 1.8}, "a / b: expected at least 1.8, measured 1.790"),
        (1.8, {"at_least": 1.8}, None),
        (9.0, {"at_least": 1.8}, None),
        (1.33, {"at_most": 1.32}, "a / b: expected at most 1.32, measured 1.330"),
        (1.32, {"at_most": 1.32}, None),
        (0.1, {"at_most": 1.32}, None),
        (float("nan"), {"at_least": 1.8}, "a / b: expected at least 1.8, measured nan"),
    ],
)
def test_a_line_for_each_ratio_beyond_its_bound(value: float, entry: dict, line: str | None) -> None:
    ratio = Ratio("a / b", value, None, less="at_most" in entry)
    assert shortfalls([ratio], {"a / b": entry}) == ([line] if line else [])


def test_a_ratio_that_was_not_measured_fails_unless_its_method_is_missing() -> None:
    expected = {"ours / llama.cpp": {"at_least": 0.9}, "ours / theirs": {"at_least": 1.0}}
    line = "ours / llama.cpp: expected at least 0.9, was not measured"
    assert shortfalls([SPEEDUP], expected) == [line]
    assert shortfalls([SPEEDUP], expected, missing=["llama.cpp"]) == []
    assert shortfalls([SPEEDUP], expected, missing=["llama"]) == [line]


BAD = [
    (None, "No such file"),
    ("{", "JSONDecodeError"),
    ("[]", "TypeError"),
    ("{}", "KeyError: 'ratios'"),
    ('{"ratios": {}}', "no ratios"),
    ('{"ratios": {"a / b": {"expected": 1.0}}}', "ValueError"),
    ('{"ratios": {"a / b": {"at_least": 1, "at_most": 2}}}', "ValueError"),
    ('{"ratios": {"a / b": {"at_least": "one"}}}', "'a / b': at_least is no number"),
]


@pytest.mark.parametrize(("content", "why"), BAD, ids=[why for _, why in BAD])
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "ratios.json"
    if content is not None:
        file.write_text(content, "utf-8")
    with pytest.raises(InputError) as caught:
        read_expectations(str(file))
    message = str(caught.value)
    assert message.startswith("check: expected a file of ratios")
    assert why in message
    assert "\n" not in message
