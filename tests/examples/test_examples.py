"""Every example runs."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from examples import evaluate_lossy, generate, stream
from tests.support.places import ROOT


def test_generate_shows_who_wrote_what(capsys: pytest.CaptureFixture) -> None:
    generate.main("tiny", "ngram", "one two one two one two", "hello")
    out = capsys.readouterr().out
    assert out.count("tokens per step") == 2


def test_streamed_pieces_are_the_text(capsys: pytest.CaptureFixture) -> None:
    import specdec

    stream.main("tiny", "ngram", "one two one two")
    streamed = capsys.readouterr().out
    (text,) = specdec.load("tiny").generate("one two one two", max_new_tokens=96)
    assert streamed == text.text + "\n"


@pytest.mark.filterwarnings("ignore")  # of the harness and its libraries
def test_a_lossy_rule_is_evaluated_beside_the_lossless_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tmp_path / "questions.jsonl"
    task.write_text('{"q": "one two one two", "a": "x"}\n{"q": "hello hello", "a": "y"}\n', "utf-8")
    config = {
        "task": "questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(task)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    found = evaluate_lossy.main("tiny", "ngram", "typical", config, limit=2)
    assert set(found) == {"typical", "exact"}
    assert all("questions" in figures for figures in found.values())


def test_every_example_is_run_by_a_test() -> None:
    elsewhere = {"search"}  # with Optuna: tests/launchers
    run = {name for name in globals() if (ROOT / "examples" / f"{name}.py").exists()}
    assert run | elsewhere == {file.stem for file in (ROOT / "examples").glob("*.py")}
    for name in run:
        assert importlib.import_module(f"examples.{name}").__doc__
