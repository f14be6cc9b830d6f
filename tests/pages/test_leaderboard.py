"""`python -m experiments.leaderboard`: one row per entrant, the newest run, and a page whose choices work."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from experiments import leaderboard as entry
from experiments.pictures.leaderboard import COLUMNS, Leaderboard
from specdec.runs.read import Run, find_runs
from tests.support.browser import keep_screenshot
from tests.support.runs_on_disk import SCRIPT, begin, finished


def run(folder: Path, started: str, speedup: float, drafter: str = "ngram", **machine: Any) -> Run:
    finished(folder, drafter=drafter, options={"prompts": {"path": "some/where/spec_bench.jsonl"}})
    for name, changes in (
        ("summary.json", {"speedup": speedup, "prompts": 13, "max_new_tokens": 64}),
        ("provenance.json", {"started": started, "machine": {"cpu": "EPYC", "gpu": [], **machine}}),
    ):
        data = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**data, **changes}), "utf-8")
    return Run(folder)


def test_the_newest_run_of_every_entrant_newest_first(tmp_path: Path) -> None:
    run(tmp_path / "a", "2026-11-01T10:00:00+0000", 1.5)
    run(tmp_path / "b", "2026-11-03T10:00:00+0000", 1.7)
    run(tmp_path / "c", "2026-11-02T10:00:00+0000", 1.6)
    run(tmp_path / "d", "2026-11-02T11:00:00+0000", 2.5, gpu=["H200"])
    run(tmp_path / "e", "2026-11-04T10:00:00+0000", 1.1, drafter="medusa")
    begin(tmp_path / "dead").stop("failed")
    board = Leaderboard.of(find_runs([tmp_path]))
    columns = ("drafter", "machine", "prompts", "speedup", "runs")
    shown = [[row[COLUMNS.index(name)] for name in columns] for row in board.table.rows]
    prompts = "spec_bench.jsonl, 13 prompts, 64 tokens"
    assert shown == [
        ["medusa", "EPYC, 1 thread", prompts, 1.1, 1],
        ["ngram", "EPYC, 1 thread", prompts, 1.7, 3],
        ["ngram", "H200, 1 thread", prompts, 2.5, 1],
    ]
    assert board.left_out == 1


@pytest.mark.parametrize(
    ("broken", "left_out"), [({"speedup": "fast"}, 1), ({"divergence": 7}, 0), ({"speedup_ci95": 3}, 0)]
)
def test_what_cannot_be_read_of_a_run_spoils_no_page(tmp_path: Path, broken: dict[str, Any], left_out: int) -> None:
    run(tmp_path / "a", "2026-11-01T10:00:00+0000", 1.5)
    run(tmp_path / "b", "2026-11-02T10:00:00+0000", 1.5)
    file = tmp_path / "b" / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **broken}), "utf-8")
    board = Leaderboard.of(find_runs([tmp_path]))
    assert (len(board.table.rows), board.left_out) == (1, left_out)


def test_the_command_writes_a_page_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", "2026-11-01T10:00:00+0000", 1.5, drafter=SCRIPT)
    entry.main([str(tmp_path)])
    assert "1.50" in capsys.readouterr().out
    page = (tmp_path / "leaderboard.html").read_text("utf-8")
    assert SCRIPT not in page, "words of a run are escaped"
    assert "script-src &#39;sha256-" in page


def test_no_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        entry.main([str(tmp_path)])
    assert end.value.code == 2
    assert "folder: expected a folder with runs" in capsys.readouterr().err


def test_rows_can_be_chosen_and_sorted(tmp_path: Path, open_page: Any) -> None:
    run(tmp_path / "a", "2026-11-01T10:00:00+0000", 1.5)
    run(tmp_path / "b", "2026-11-02T10:00:00+0000", 1.25, drafter="medusa")
    run(tmp_path / "c", "2026-11-03T10:00:00+0000", 10.5, drafter="union")
    entry.main([str(tmp_path)])
    works(open_page((tmp_path / "leaderboard.html").as_uri()))
    for width in (360, 1280):
        page = open_page((tmp_path / "leaderboard.html").as_uri(), width=width)
        keep_screenshot(page, f"leaderboard-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def works(page: Any) -> None:
    """The choices, the order and the CSV of a page with three drafters."""

    def drafters() -> list[str]:
        return page.locator("#board tbody tr:visible td:nth-child(2)").all_inner_texts()

    assert drafters() == ["union", "medusa", "ngram"]
    page.locator("#board th", has_text="speedup").click()
    assert drafters() == ["union", "ngram", "medusa"], "as numbers, the largest first"
    page.locator("#board th", has_text="speedup").click()
    assert drafters() == ["medusa", "ngram", "union"]
    page.locator("select").nth(1).select_option("medusa")
    assert drafters() == ["medusa"]
    assert page.locator("#count").inner_text() == "1 of 3 rows"
    link = page.locator("a[download]").get_attribute("href")
    assert link is not None
    head, *rows = csv.reader(io.StringIO(unquote(link.partition(",")[2])))
    assert head == list(COLUMNS)
    assert len(rows) == 3
