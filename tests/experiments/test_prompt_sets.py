"""Runs over prompt files as they come: repeated rows and ids, and prompts that the context window has no room for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import bench
from tests.support.commands import Done, command

TINY = ["target=tiny", "target.device=cpu", "tracker=none", "report=false", "prompts=jsonl", "drafter=ngram"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Measure prompts, given as rows of a file."""
    call = command(bench.main, tmp_path / "run", monkeypatch, capsys)

    def bench_rows(rows: list[dict], *overrides: str) -> Done:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return call(*TINY, f"prompts.path={file}", *overrides)

    return bench_rows


def row(name: object, *turns: str) -> dict:
    return {"question_id": name, "category": "a", "turns": list(turns)}


def left_behind(tmp_path: Path) -> tuple[list[dict], dict]:
    """The texts, and the summary."""
    folder = tmp_path / "run"
    texts = [json.loads(line) for line in (folder / "generations.jsonl").read_text("utf-8").splitlines()]
    return texts, json.loads((folder / "summary.json").read_text("utf-8"))


def test_rows_are_told_apart_by_their_place(run: Callable[..., Done], tmp_path: Path) -> None:
    """Two conversations of one id and three equal rows are five prompts; equal rows have seeds of their own."""
    same = [row(5, "Name a random animal.")] * 3
    rows = [row(7, "Count to three.", "Now backwards."), row(7, "Name a colour.", "Another one."), *same]
    sampled = ["generation.temperature=1", "generation.max_new_tokens=12", "generation.batch_size=5"]
    done = run(rows, *sampled)
    assert done.status == 0, done.err
    assert "2 ids stand on several rows (7, 5); the later ones are called 7#2 and so on" in done.err
    texts, summary = left_behind(tmp_path)
    assert summary["prompts"] == 5
    assert [(text["prompt"], text["turn"]) for text in texts] == [
        ("7", 0), ("7#2", 0), ("5", 0), ("5#2", 0), ("5#3", 0), ("7", 1), ("7#2", 1)
    ]  # fmt: skip
    assert len({text["text"] for text in texts if text["prompt"].startswith("5")}) == 3


def test_prompts_that_are_too_long_are_refused_or_left_out(run: Callable[..., Done], tmp_path: Path) -> None:
    """The tiny target has room for 4,096 tokens, which are bytes."""
    rows = [row(1, "Hi."), row("long", "word " * 820), row(3, "Go on.", "word " * 815)]
    short = "generation.max_new_tokens=8"
    done = run(rows, short)
    assert done.status == 2
    assert "prompt long: expected prompt and new tokens within the context window of 4096 tokens" in done.err
    assert "leave it out with prompts.too_long=skip" in done.err
    done = run(rows, short, "prompts.too_long=skip")
    assert done.status == 0, done.err
    texts, summary = left_behind(tmp_path)
    assert [(text["prompt"], text["turn"]) for text in texts] == [("1", 0), ("3", 0)]
    assert [(one["prompt"], one["turn"]) for one in summary["skipped"]] == [("long", 0), ("3", 1)]
    assert all(one["tokens"] > one["room"] == 4096 - 8 for one in summary["skipped"])
    assert "left out (too long)" in done.out
    assert "long: 4,1" in done.out
    assert "3 from turn 2: 4," in done.out
    assert run(rows[1:2], short, "prompts.too_long=skip").status == 2
