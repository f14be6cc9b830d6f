"""`python -m experiments.report`: one page and its text, in a real browser."""

from __future__ import annotations

import csv
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from experiments import report
from experiments.pictures import one_run
from experiments.pictures.page import Contents
from experiments.pictures.reader import reader
from experiments.pictures.style import PALETTE, drafter_style
from specdec.runs.read import Run
from tests.support.browser import MODES, WIDTHS, keep_screenshot, nothing_is_cut_off, whole_view
from tests.support.configs import group
from tests.support.runs_on_disk import SCRIPT, add_text, begin, finished, training

EXPECTED = {
    "acceptance_by_depth", "emitted_tokens", "tree", "phase_time", "speed_along_text", "tau_by_category",
    "speedup_by_category",
}  # fmt: skip


ROOT = Path(__file__).resolve().parents[2]


def loaded(folder: Path) -> Run:
    run = Run(folder)
    run.refresh()
    return run


def test_the_page_shows_the_summary(
    tmp_path: Path, open_page: Callable[..., Any], capsys: pytest.CaptureFixture
) -> None:
    summary = finished(tmp_path)
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(f"report: {tmp_path / 'report.html'}")
    shown = open_page((tmp_path / "report.html").as_uri())
    whole_view(shown)
    assert set(shown.eval_on_selector_all(".chart", "all => all.map((chart) => chart.id)")) == EXPECTED
    marks = "all => all.map((chart) => chart.querySelectorAll('.point, .js-line').length)"
    assert all(shown.eval_on_selector_all(".chart", marks))

    def data(name: str, axis: str) -> Any:
        return shown.evaluate(f"document.getElementById('{name}').data[0].{axis}")

    assert data("acceptance_by_depth", "y") == summary["acceptance_at_depth"]
    assert data("emitted_tokens", "customdata") == summary["emitted_histogram"]
    assert data("tau_by_category", "x") == [c["tokens_per_step"] for c in reversed(summary["by_category"].values())]
    tiles = shown.locator(".tile b").all_inner_texts()
    assert tiles[:4] == [f"{summary['tokens_per_step']:.2f}", "2.00x", "20.0", "50%"]
    assert f"{summary['acceptance_at_depth'][0]:.3f}" in printed
    for words in (loaded(tmp_path).command, loaded(tmp_path).commit):
        assert words in shown.inner_text("header")
    for link in shown.locator(".csv a").all():
        rows = list(csv.reader(io.StringIO(unquote(link.get_attribute("href").partition(",")[2]))))
        assert len(rows) > 1
        assert len({len(row) for row in rows}) == 1


def test_words_of_a_run_are_text_and_never_run(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    finished(tmp_path)
    report.main([str(tmp_path)])
    shown = open_page((tmp_path / "report.html").as_uri())
    whole_view(shown)
    shown.click("summary")
    assert shown.inner_text(".reader .prompt") == SCRIPT
    assert shown.evaluate("window.pwned") is None
    assert shown.locator("main script:not([type='application/json']), main img").count() == 0
    ticks = shown.eval_on_selector_all("#tau_by_category .ytick text", "all => all.map((tick) => tick.textContent)")
    assert "<b>bold</b>" in ticks
    # what would run if something were not escaped after all, the page's own policy forbids
    page_text = (tmp_path / "report.html").read_text("utf-8")
    assert "default-src 'none'" in page_text
    assert "script-src &#39;sha256-" in page_text
    assert "<script>window" not in page_text


def test_the_reader_moves_and_says_who_wrote_what(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    finished(tmp_path)
    report.main([str(tmp_path)])
    shown = open_page((tmp_path / "report.html").as_uri())
    run = loaded(tmp_path)
    (key, records) = next(iter(run.texts.items()))
    assert shown.inner_text(".reader option >> nth=0") == f"{key.category}: {key.prompt}"
    assert shown.inner_text(".reader .facts b") == "step 12 of 12"
    for back in (11, 10):
        shown.click(".reader .back")
        now = shown.locator(".tok.now")
        record = records[back - 1]
        assert shown.inner_text(".reader .facts b") == f"step {back} of 12"
        assert now.count() == record.emitted
        kinds = ["accepted"] * record.accepted + [record.closing]
        assert [kind.split()[1] for kind in now.evaluate_all("all => all.map((token) => token.className)")] == kinds
    assert shown.locator(".tok.later").count() == sum(record.emitted for record in records[10:])
    shown.select_option(".reader select", index=1)
    assert shown.inner_text(".reader .facts b") == "step 12 of 12"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(tmp_path: Path, open_page: Callable[..., Any], width: int, mode: str) -> None:
    for number, (drafter, depth) in enumerate((("ngram", 3), ("ngram", 7), ("ngram_lm", 3), ("none", 0))):
        finished(tmp_path / str(number), drafter, options={"drafter": {"depth": depth}})
    report.main([str(tmp_path)])
    report.main([str(tmp_path / "0")])
    for name, file in (("comparison", tmp_path / "report.html"), ("report", tmp_path / "0" / "report.html")):
        shown = open_page(file.as_uri(), width, mode)
        whole_view(shown)
        nothing_is_cut_off(shown)
        keep_screenshot(shown, f"{name}-{width}-{mode}")


def test_a_comparison_has_a_table_its_parameters_and_one_colour_a_drafter(tmp_path: Path) -> None:
    for number, (drafter, depth) in enumerate((("ngram", 3), ("ngram", 7), ("none", 0))):
        finished(tmp_path / str(number), drafter, options={"drafter": {"depth": depth}, "tracker": {"x": number}})
    contents = Contents.of([loaded(tmp_path / str(number)) for number in range(3)])
    assert contents.table is not None
    assert [row[0] for row in contents.table.rows] == ["ngram depth=3", "ngram depth=7", "none depth=0"]
    names = [picture.name for picture in contents.pictures]
    assert names == [
        "speedup_against_tau", "speedup_against_nodes", "speedup_over_drafter_depth", "tokens_per_step_heat_map",
        "speedup_heat_map",
    ]  # fmt: skip
    for picture in contents.pictures[:3]:
        colours = {mark.legendgroup: mark.marker.color for mark in picture.figure.data}
        assert colours == {name: drafter_style(name)[0] for name in ("ngram", "none")}
    assert not contents.notes


def test_every_drafter_has_a_colour_and_a_symbol_of_its_own() -> None:
    styles = [drafter_style(name) for name in group("drafter")]
    assert len(set(styles)) == len(styles)
    assert drafter_style("none")[0] not in PALETTE


def test_mixed_targets_are_named_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    finished(tmp_path / "a", target="tiny")
    finished(tmp_path / "b", target="other")
    report.main([str(tmp_path)])
    line = "These runs have different targets (tiny, other): their figures do not compare."
    assert line in (tmp_path / "report.html").read_text("utf-8")
    assert line in capsys.readouterr().out


def test_a_run_cut_short_is_drawn_from_what_is_whole_and_says_so(tmp_path: Path) -> None:
    log = begin(tmp_path)
    add_text(log, 0)
    log.stop("interrupted")
    steps = tmp_path / "steps.jsonl"
    steps.write_bytes(steps.read_bytes()[:-10])
    report.main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "the last line of steps.jsonl is cut off" in text
    assert "the run was interrupted" in text
    assert "speedup_by_category" not in [picture.name for picture in one_run.pictures(loaded(tmp_path))]


def test_a_summary_that_lacks_a_figure_is_drawn_without_it(tmp_path: Path) -> None:
    written = json.dumps(finished(tmp_path / "a"))
    finished(tmp_path / "b")
    for key in (*json.loads(written), "everything"):
        summary = json.loads(written)
        kept = {name: value for name, value in summary.items() if key not in (name, "everything")}
        for of_category in kept.get("by_category", {}).values():
            of_category.pop(key, None)
        (tmp_path / "a" / "summary.json").write_text(json.dumps(kept), "utf-8")
        runs = [loaded(tmp_path / name) for name in ("a", "b")]
        assert {picture.name for picture in Contents.of(runs[:1]).pictures} >= EXPECTED - {"speedup_by_category"}
        assert Contents.of(runs).table


def test_printed_tables_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for depth in (3, 7):
        finished(tmp_path / str(depth), options={"drafter": {"depth": depth}})
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    for words in ("ngram depth=3", "acceptance rate", "exact (lossless)"):
        assert words in printed


def test_training_curves(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    training(tmp_path / "run")
    report.main([str(tmp_path), "--write", str(tmp_path / "page.html")])
    shown = open_page((tmp_path / "page.html").as_uri())
    whole_view(shown)
    data = shown.evaluate("document.getElementById('training_tokens_per_step').data[0]")
    assert (data["x"], data["y"]) == ([0, 5, 10, 15, 20], [1.0, 1.125, 1.25, 1.375, 1.5])
    names = shown.evaluate("document.getElementById('training_loss').data.map((line) => line.name)")
    assert names == ["validation/loss", "loss"]
    assert shown.locator("#training_top1 .js-line").count() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "error: folder: expected a folder with runs, got '/nowhere'; check the path"),
        (["{}/empty"], "error: folder: expected a folder with runs (steps.jsonl or train.jsonl), got none in"),
        (["{}/run", "--write", "/nowhere/page.html"], "error: --write: expected a file that can be written, got"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    finished(tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        report.main([argument.format(tmp_path) for argument in arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html*"))


def children_seconds() -> float:
    """Processor time: unlike the clock's, it is hardly that of others."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_run_of_100_000_steps_is_drawn_quickly_on_a_small_page(tmp_path: Path) -> None:
    finished(tmp_path, texts=20)
    for name in ("steps.jsonl", "generations.jsonl"):
        lines = [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        copies = 100_000 // (20 * 12) + 1
        with (tmp_path / name).open("w", encoding="utf-8") as file:
            for repeat in range(copies):
                file.writelines(json.dumps({**line, "repeat": repeat}) + "\n" for line in lines)
    begun = children_seconds()  # in a process of its own: this one checks types
    subprocess.run([sys.executable, "-m", "experiments.report", str(tmp_path)], cwd=ROOT, check=True)
    assert children_seconds() - begun < 30  # alone 8; beside other tests half as much again and more
    assert (tmp_path / "report.html").stat().st_size < 8e6
    run = loaded(tmp_path)
    assert len(run.steps) >= 100_000
    texts = reader(run)
    assert texts is not None
    assert len(texts["texts"]) < texts["total"] == copies * 20
