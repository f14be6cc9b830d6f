"""`python -m experiments.dashboard`: the list, a run that grows, and nothing from outside the folder."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from werkzeug.serving import make_server

from experiments import dashboard
from specdec.metrics import StepMetrics
from tests.pages.test_leaderboard import run as scored
from tests.pages.test_leaderboard import works
from tests.support.browser import keep_screenshot, nothing_is_cut_off, whole_view
from tests.support.runs_on_disk import add_reports, add_text, begin, begin_training, finished, training


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The dashboard of `tmp_path / "outputs"`, and its address."""
    (tmp_path / "outputs").mkdir()
    server = make_server(dashboard.HOST, 0, dashboard.dashboard(tmp_path / "outputs").server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{dashboard.HOST}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def choose(page: Any, *rows: int) -> None:
    page.wait_for_selector("#runs input[type=checkbox]")
    for row in rows:
        page.locator("#runs input[type=checkbox]").nth(row).click()
    page.wait_for_selector(".main-svg")


def test_a_live_run_is_followed(tmp_path: Path, served: str, open_page: Callable[..., Any]) -> None:
    log = begin(tmp_path / "outputs" / "live")
    records = add_text(log, 0)
    page = open_page(served)
    choose(page, 0)
    tau = page.locator(".tile b >> nth=0")
    assert tau.inner_text() == f"{StepMetrics.of(records).tokens_per_step:.2f}"
    assert "the run is under way" in page.inner_text("#shown")
    steps = "() => document.querySelector('#emitted_tokens .js-plotly-plot').data[0].customdata.reduce((a, b) => a + b)"
    assert page.evaluate(steps) == 12
    records += add_text(log, 1, steps=30)
    page.wait_for_function(f"{steps.replace('() => ', '() => 42 === ')}")
    page.wait_for_function(
        f"() => document.querySelector('.tile b').innerText === '{StepMetrics.of(records).tokens_per_step:.2f}'"
    )
    log.stop("interrupted")
    page.wait_for_function("() => document.querySelector('#shown').innerText.includes('the run was interrupted')")
    keep_screenshot(page, "dashboard-live")


def test_the_leaderboard_is_a_page_of_it(tmp_path: Path, served: str, open_page: Callable[..., Any]) -> None:
    for day, (drafter, speedup) in enumerate((("ngram", 1.5), ("medusa", 1.25), ("union", 10.5)), 1):
        scored(tmp_path / "outputs" / drafter, f"2026-11-0{day}T10:00:00+0000", speedup, drafter=drafter)
    page = open_page(served, width=360)
    keep_screenshot(page, "dashboard-360")
    page.locator("a", has_text="leaderboard").click()
    page.wait_for_selector("#board")
    works(page)
    finished(tmp_path / "outputs" / "later", drafter="eagle")
    page.reload()
    assert "eagle" in page.inner_text("#board tbody tr >> nth=0"), "runs that came later are there"


def test_a_live_training_run_is_followed(tmp_path: Path, served: str, open_page: Callable[..., Any]) -> None:
    log = begin_training(tmp_path / "outputs" / "live")
    add_reports(log, (0, 5))
    page = open_page(served)
    choose(page, 0)
    drawn = "document.querySelector('#training_tokens_per_step .js-plotly-plot').data[0].x"
    assert page.evaluate(drawn) == [0, 5]
    add_reports(log, (10,))
    page.wait_for_function(f"() => {drawn}.length === 3")
    assert "medusa" in page.inner_text("#runs")
    log.stop("interrupted")
    page.wait_for_function("() => document.querySelector('#shown').innerText.includes('the run was interrupted')")


def test_a_training_runs_speed_is_not_listed_as_that_of_decoding(tmp_path: Path) -> None:
    training(tmp_path / "run")
    (row,) = dashboard.Library(tmp_path).rows()
    assert (row["drafter"], row["tau"], row["status"]) == ("medusa", 1.5, "finished")
    assert "speed" not in row


def test_figures_that_are_no_numbers_leave_the_list_standing(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text('{"speedup": "2x", "tokens_per_step": null}', "utf-8")
    (row,) = dashboard.Library(tmp_path).rows()
    assert (row["speedup"], row["tau"]) == (None, None)


@pytest.mark.parametrize(("width", "mode"), [(1280, "light"), (1280, "dark"), (390, "dark")])
def test_runs_are_listed_and_compared(
    tmp_path: Path, served: str, open_page: Callable[..., Any], width: int, mode: str
) -> None:
    finished(tmp_path / "outputs" / "a", "ngram")
    finished(tmp_path / "outputs" / "b", "ngram_lm")
    training(tmp_path / "outputs" / "c")
    page = open_page(served, width, mode)
    choose(page, 0, 1, 2)
    page.wait_for_selector("#training_loss .main-svg")
    page.wait_for_function("() => document.querySelectorAll('.runs tr').length === 3")  # the head, and two that decode
    whole_view(page)
    nothing_is_cut_off(page)
    keep_screenshot(page, f"dashboard-{width}-{mode}")


def status(url: str, host: str | None = None) -> int:
    try:
        with urlopen(Request(url, headers={"Host": host} if host else {})) as answer:
            return answer.status
    except HTTPError as error:
        error.close()
        return error.code


def test_nothing_from_outside_the_folder_and_nobody_from_elsewhere(tmp_path: Path, served: str) -> None:
    finished(tmp_path / "outputs" / "inside")
    finished(tmp_path / "secret")
    (tmp_path / "outputs" / "link").symlink_to(tmp_path / "secret")
    shutil.copytree(tmp_path / "outputs" / "inside", tmp_path / "outputs" / "made_of_links")
    (tmp_path / "outputs" / "made_of_links" / "generations.jsonl").unlink()
    (tmp_path / "outputs" / "made_of_links" / "generations.jsonl").symlink_to(tmp_path / "secret" / "generations.jsonl")
    urlopen(served).close()
    assert status(f"{served}/reader?run=inside") == 200
    assert status(f"{served}/report?run=inside") == 200
    for outside in (
        "../secret",
        str(tmp_path / "secret"),
        "inside/../../secret",
        "link",
        "made_of_links",
        "",
        "%2e%2e/secret",
    ):
        assert status(f"{served}/reader?run={outside}") == 404
        assert status(f"{served}/report?run={outside}") == 404
    port = served.rpartition(":")[2]
    assert status(served, host=f"evil.example:{port}") == 403
    assert status(served, host=f"localhost:{port}") == 200


def test_500_runs_are_listed_quickly(tmp_path: Path) -> None:
    finished(tmp_path / "0")
    for number in range(1, 500):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
    begun = time.process_time()
    assert len(dashboard.Library(tmp_path).rows()) == 500
    assert time.process_time() - begun < 6  # half of it checks shapes and types, in tests only


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind((dashboard.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, message in (
            (["/nowhere"], "error: folder: expected a folder of runs, got '/nowhere'; check the path"),
            ([str(tmp_path), "--port", str(port)], f"error: --port: expected a free port, got {port}"),
        ):
            with pytest.raises(SystemExit) as end:
                dashboard.main(arguments)
            assert end.value.code == 2
            assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("provenance.json", '{"names": 7, "status": ["x"], "command": 3}'),
        ("provenance.json", '{"names": {"drafter": {"a": [1]}}, "process": 5, "started": {}}'),
        ("provenance.json", "[" * 100_000),
        ("summary.json", '{"speedup": NaN, "tokens_per_step": Infinity, "drafter": []}'),
        ("summary.json", "\x00\x01"),
        ("summary.json", None),
        ("steps.jsonl", '{"prompt": [], "category": {}, "turn": {}, "repeat": [], "emitted": "x"}\n7\nnull\n[]\n'),
        ("generations.jsonl", '{"category": []}\n'),
    ],
)
def test_a_malformed_run_is_a_row_and_the_others_stay(
    tmp_path: Path, served: str, file: str, content: str | None
) -> None:
    outputs = tmp_path / "outputs"
    for name in ("a", "bad", "z"):
        finished(outputs / name)
    (outputs / "bad" / file).unlink()
    if content is None:
        (outputs / "bad" / file).mkdir()
    else:
        (outputs / "bad" / file).write_text(content, "utf-8")
    rows = dashboard.Library(outputs).rows()
    assert [row["run"] for row in rows] == ["a", "bad", "z"]
    urlopen(served).close()
    assert status(f"{served}/report?run=a&run=z") == 200
    assert status(f"{served}/report?run=bad") in (200, 404)
    assert status(f"{served}/reader?run=bad") in (200, 404)


def test_a_file_that_is_swapped_for_a_link_is_not_followed(tmp_path: Path, served: str) -> None:
    finished(tmp_path / "outputs" / "run")
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "secret"}\n', "utf-8")
    urlopen(served).close()
    assert status(f"{served}/report?run=run") == 200
    (tmp_path / "outputs" / "run" / "generations.jsonl").unlink()
    (tmp_path / "outputs" / "run" / "generations.jsonl").symlink_to(secret)
    assert status(f"{served}/report?run=run") == 404
    assert dashboard.Library(tmp_path / "outputs").rows() == []


def test_every_page_has_security_headers(tmp_path: Path, served: str) -> None:
    finished(tmp_path / "outputs" / "run")
    urlopen(served).close()
    for page in ("/", "/reader?run=run", "/report?run=run", "/_dash-layout"):
        with urlopen(f"{served}{page}") as answer:
            for name in dashboard.HEADERS:
                assert answer.headers[name], (page, name)
            assert "frame-ancestors 'self'" in answer.headers["Content-Security-Policy"]
