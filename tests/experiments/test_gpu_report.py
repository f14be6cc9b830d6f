"""The report of a GPU, on a CPU through every row: times are not judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import gpu_report
from specdec.measure.gpu_report import FLOORS, Row

QUICK = ["--rounds", "2", "--new", "12", "--prefix", "32", "--device", "cpu"]


def test_every_row_is_measured_and_none_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "report.json"
    gpu_report.main([*QUICK, "--shapes", "tiny", "--out", str(file)])
    found = json.loads(file.read_text("utf-8"))
    names = [row["name"] for rows in found["rows"].values() for row in rows]
    for part in ("copy bandwidth", "decode, share of the bandwidth", "verify(8) / decode", "verify(64) / decode",
                 "aten_flash, 1 node, 1024 tokens", "aten_flash / dense, 1024 tokens", "plain decoding",
                 "model.generate", *(f"τ {tau:.2f}: {what}" for tau in FLOORS for what in (
                     "tokens per step", "glue of a step", "speedup over plain decoding"))):  # fmt: skip
        assert part in names
    assert all(row["value"] > 0 for rows in found["rows"].values() for row in rows)
    said = capsys.readouterr().out
    assert found["judged"] is False
    assert said.startswith("CPU, 1 threads, torch ")
    assert "| not judged |" in said
    assert "| yes |" not in said
    assert "| no |" not in said


def test_a_goal_is_judged_from_its_own_side() -> None:
    assert Row("x", 1.06, "", 1.05).met is False
    assert Row("x", 1.04, "", 1.05).met is True
    assert Row("x", 0.69, "", 0.7, True).met is False
    assert Row("x", 0.71, "", 0.7, True).met is True
    assert Row("x", 1.0).met is None
    judged = gpu_report.page("card", {"part": [Row("x", 0.71, "ms", 0.7)]}, judged=True)
    assert judged.endswith("| x | 0.71 ms | ≤ 0.7 ms | no |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "error: --rounds: expected 1 or more, got 0; raise it"),
        (["--shapes", "llama3_8"], "error: target: expected one of"),
        (["--device", "cuda:9"], "error: target.device: expected one of auto, cpu"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        gpu_report.main([*QUICK, "--out", str(tmp_path / "report.json"), *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(message)
    assert not list(tmp_path.iterdir())
