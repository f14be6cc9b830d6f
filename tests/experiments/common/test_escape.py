"""Text of users where it is shown: brackets are brackets, and nothing is run, moved or computed by it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table as RichTable

from experiments import bench, report
from experiments.common.escape import SafeConsole, csv_cell, visible, words
from experiments.pictures.page import page
from experiments.pictures.picture import Table
from specdec.runs.read import Run

NASTY = ("[/math]", "[bold]", "math [hard]", "[red]x", "\\[", "a\\", ":smile:", "<b>x</b>", "=1+1", "{a}")
MOVES = ("\x1b[2J", "\x1b]0;title\x07", "\r", "\x08", "\x7f", "\x9b31m", "\u202egnp", "\ud83d")


@pytest.mark.parametrize("text", NASTY)
def test_brackets_are_brackets(text: str) -> None:
    console = SafeConsole(file=io.StringIO(), width=80)
    table = RichTable(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print(text)
    assert console.file.getvalue().count(text) == 4


@pytest.mark.parametrize("text", MOVES)
def test_control_characters_are_shown(text: str) -> None:
    console = SafeConsole(file=io.StringIO(), width=80)
    table = RichTable()
    table.add_column(f"head{text}")
    table.add_row(f"cell{text}")
    console.print(table)
    console.print(f"line{text}")
    shown = console.file.getvalue()
    assert shown.isprintable() or not set(shown) & {"\x1b", "\r", "\x07", "\x08", "\x7f", "\x9b", "\u202e"}
    shown.encode("utf-8")  # no half of a surrogate pair
    assert "\\" in visible(text)


def test_no_cell_is_a_formula() -> None:
    rows = [
        ["=cmd|'/C calc'!A0", 1],
        ["+1", -2.5],
        ["-1", None],
        ["@SUM(A1)", 3],
        ["\t=1", 4],
        ["\r=1", 5],
        ["plain", 6],
    ]
    lines = Table(("=head", "n"), rows).csv().split("\n")
    assert lines[0] == "'=head,n"
    assert lines[1].startswith("'=cmd")
    assert lines[2] == "'+1,-2.5"
    assert csv_cell(-2.5) == -2.5
    assert csv_cell("plain") == "plain"


def test_plotly_reads_no_tags() -> None:
    assert words("<b>&</b>\x1b") == "&lt;b&gt;&amp;&lt;/b&gt;\\x1b"


def test_a_run_of_nasty_categories_ends_well(tmp_path: Path, call: Callable[..., tuple]) -> None:
    texts = [*NASTY, "</script><script>alert(1)</script>", *MOVES[:-1]]
    lines = [
        json.dumps({"question_id": f"{i}{c}", "category": c, "turns": ["two and two?"]}) for i, c in enumerate(texts)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), "utf-8")
    options = ("target=tiny", "tracker=none", "report=false", "prompts=jsonl", f"prompts.path={tmp_path / 'p.jsonl'}")
    status, summary, out = call(bench.main, *options, "generation.max_new_tokens=2", "generation.batch_size=32")
    assert status == 0, out
    assert set(summary["by_category"]) == set(texts)
    for text in NASTY:
        assert text in out
    assert "\x1b" not in out
    html = page([Run(tmp_path)])
    assert "<script>alert(1)" not in html
    report.main([str(tmp_path)])
