"""Files of a run whose values are of other types are left out and named; no reader of runs ends in a traceback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments import compare, leaderboard, report
from specdec.runs.read import Run
from specdec.runs.records import is_generation, is_step, sound_provenance
from tests.support.runs_on_disk import finished

NUMBER = re.compile(rb"(?<=: )-?[0-9][0-9.e-]*")
OTHERS = {
    "text": b'"x"', "null": b"null", "NaN": b"NaN", "negative": b"-3", "huge": b"1e308", "true": b"true",
    "list": b"[1]", "object": b"{}", "digits": b"9" * 5000,
}  # fmt: skip


@pytest.mark.fault("run folder with values of other types")
@pytest.mark.parametrize("value", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("name", ["summary.json", "steps.jsonl", "generations.jsonl", "provenance.json"])
def test_values_of_other_types_end_no_reader(
    name: str, value: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for run in ("good", "bad"):
        finished(tmp_path / run)
    file = tmp_path / "bad" / name
    file.write_bytes(NUMBER.sub(value, file.read_bytes()))
    for main, arguments in (
        (compare.main, [tmp_path / "good", tmp_path / "bad"]),
        (leaderboard.main, [tmp_path, "--write", tmp_path / "board.html"]),
        (report.main, [tmp_path / "bad", "--write", tmp_path / "report.html"]),
    ):
        status = 0
        try:
            main(list(map(str, arguments)))
        except SystemExit as end:
            status = int(end.code or 0)
        line = capsys.readouterr().err
        assert status == 0 or (status == 2 and line.startswith("error: ")), line


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    finished(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "tokens_per_step": "many"}), "utf-8")
    run = Run(tmp_path)
    run.refresh()
    assert "summary.json: left out tokens_per_step, which cannot be what a run wrote" in run.notes
    assert isinstance(run.figures.tokens_per_step, float)  # from the steps


def test_values_of_a_wrong_type_are_left_out_of_a_provenance() -> None:
    kept, named = sound_provenance({"names": [], "machine": {"gpu": 1, "cpu": "a"}, "commit": None})
    assert (kept, named) == ({"machine": {"cpu": "a"}, "commit": None}, ["names", "machine.gpu"])


def test_lines_are_judged_by_their_numbers() -> None:
    step = {
        "turn": 0, "repeat": 0, "row": 0, "step": 1, "live": 1, "nodes": 2, "offered": 2, "accepted": 1, "emitted": 2,
        "path": [0, 1], "tokens": [5, 6], "ms": {"draft": 0.5}, "parents": [-1, 0],
    }  # fmt: skip
    assert is_step(step)
    assert is_step({name: value for name, value in step.items() if name != "parents"})
    for name, value in {
        "turn": "0",
        "accepted": -1,
        "emitted": True,
        "path": 1,
        "tokens": ["a"],
        "ms": {"a": "b"},
    }.items():
        assert not is_step({**step, name: value}), name
    assert is_generation({"turn": 0, "seconds": {"speculative": 0.5, "autoregressive": None}})
    for wrong in ({"turn": None}, {"seconds": []}, {"seconds": {"speculative": "1"}}):
        assert not is_generation(wrong), wrong
