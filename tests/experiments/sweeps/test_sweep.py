"""Sweeps: what fails is one job, what lies on disk is compared, and only what is missing is run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import BaseFileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments import bench, report
from experiments.common.entry import BAD_INPUT, SOME_FAILED
from experiments.sweeps import sweep
from experiments.sweeps.launch import launch
from experiments.sweeps.report import show
from specdec.decoding.decoder import Decoder
from specdec.files.claims import claim
from specdec.runs.provenance import this_process
from tests.experiments.test_bench import TINY
from tests.support.commands import Done
from tests.support.runs_on_disk import finished
from tests.support.wandb_files import wandb_records, whole_file

SHORT = [*TINY, "prompts.limit=1", "generation.max_new_tokens=6"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Call a sweep of `bench` in this process; its folder is `tmp_path / "sweep"`."""

    def call(*overrides: str) -> Done:
        argv = ["bench", "-m", f"hydra.sweep.dir={tmp_path / 'sweep'}", *SHORT, *overrides]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            launch(bench.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return call


def record(folder: Path) -> dict:
    return json.loads((folder / "job.json").read_text("utf-8"))


def test_a_job_that_fails_is_one_line_and_the_others_go_on(
    start: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, folder = Decoder.speculative, tmp_path / "sweep"

    def buggy(decoder: Decoder, *args: object) -> object:
        if decoder.drafter.depth == 3:  # type: ignore[attr-defined]
            raise RuntimeError("a\nbug")
        return honest(decoder, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "speculative", buggy)
    done = start("drafter.depth=0,2,3,4")
    assert done.status == SOME_FAILED
    assert "error: 2 of 4 jobs have not finished" in done.err
    assert "drafter.depth: expected an integer >= 1, got 0; raise it" in done.err
    assert 'raise RuntimeError("a\\nbug")' in done.err  # a bug keeps its traceback
    lines = [json.loads(line) for line in (folder / "failed.jsonl").read_text("utf-8").splitlines()]
    assert [(line["job"], line["name"], line["status"]) for line in lines] == [
        (0, "drafter.depth=0", "failed"),
        (2, "drafter.depth=3", "failed"),
    ]
    assert lines[1]["error"] == "RuntimeError: a bug"
    assert "drafter.depth=2" in done.out.split("by job")[1]
    assert '"x":[2.0,4.0]' in (folder / "sweep.html").read_text("utf-8")

    # resumed: what finished is kept, what failed runs clean
    monkeypatch.setattr(Decoder, "speculative", honest)
    steps = (folder / "1" / "steps.jsonl").stat().st_mtime_ns
    again = start("drafter.depth=0,2,3,4", "sweep.resume=true")
    assert again.status == SOME_FAILED
    assert again.err.count("finished before, kept") == 2
    assert (folder / "1" / "steps.jsonl").stat().st_mtime_ns == steps
    assert record(folder / "2")["status"] == "finished"
    assert (folder / "2" / "previous-1" / "steps.jsonl").exists()
    assert [json.loads(line)["job"] for line in (folder / "failed.jsonl").read_text("utf-8").splitlines()] == [0]


def test_a_folder_that_holds_a_sweep_is_not_mixed_with_another(start: Callable[..., Done], tmp_path: Path) -> None:
    assert start("drafter=none").status == 0
    again = start("drafter=none")
    assert again.status == BAD_INPUT
    assert again.err == (
        f"error: hydra.sweep.dir: expected a folder without a sweep, got '{tmp_path / 'sweep'}'; "
        "choose another, or run what is missing there with sweep.resume=true\n"
    )
    other = start("drafter=none,ngram", "sweep.resume=true")
    assert other.status == BAD_INPUT
    assert "expected the overrides its sweep was begun with, got other values of drafter (was none, is none,ngram)" in (
        other.err
    )


def test_resuming_needs_a_sweep(start: Callable[..., Done], tmp_path: Path) -> None:
    done = start("sweep.resume=true")
    assert done.status == BAD_INPUT
    assert done.err.startswith("error: sweep.resume: expected hydra.sweep.dir=FOLDER of a sweep that was begun, got")
    assert not (tmp_path / "sweep" / "0").exists()


def test_a_sweep_of_which_nothing_began_leaves_its_folder_free(start: Callable[..., Done]) -> None:
    assert start("drafter=ngrm").status == BAD_INPUT
    assert start("drafter=none").status == 0


def test_jobs_return_their_objective(start: Callable[..., Done], tmp_path: Path) -> None:
    options = ["objective=tokens_per_step,tokens_per_second,speedup", "objective_bound=lower", "prompts.limit=2"]
    assert start(*options).status == 0
    names = ("tokens_per_step", "tokens_per_second", "speedup")
    for number, name in enumerate(names):
        folder = tmp_path / "sweep" / str(number)
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        assert record(folder)["value"] == summary[f"{name}_ci95"][0] <= summary[name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_jobs_have_their_names_at_trackers_and_the_sweep_is_their_group(
    start: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert start("drafter.depth=2,3", "tracker=wandb").status == 0
    for number, name in enumerate(("drafter.depth=2", "drafter.depth=3")):
        records = wandb_records(whole_file(tmp_path / "sweep" / str(number)))
        (called,) = {(r.run.display_name, r.run.run_group) for r in records if r.HasField("run")}
        assert called == (name, f"{tmp_path.name}/sweep")


def test_a_job_of_a_search_is_called_by_what_the_search_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.begin(tmp_path, ["target=tiny", "drafter.depth=range(0,4)"], None, resume=False)
    node = {"mode": "MULTIRUN", "sweep": {"dir": str(tmp_path)}, "job": {"num": 5}}
    overrides = {"overrides": {"task": ["target=tiny", "drafter.depth=3"]}}
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: OmegaConf.create({**node, **overrides})))
    monkeypatch.setattr(sweep, "RunMode", SimpleNamespace(MULTIRUN="MULTIRUN"))
    assert sweep.label({"drafter": "ngram", "target": "tiny"}).name == "drafter.depth=3"


def test_an_interrupt_ends_the_sweep_and_compares_what_there_is(
    start: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Decoder.speculative

    def interrupted(decoder: Decoder, *args: object) -> object:
        if decoder.drafter.depth == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return honest(decoder, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "speculative", interrupted)
    done = start("drafter.depth=2,3,4")
    assert done.status == 130
    assert record(tmp_path / "sweep" / "1")["status"] == "interrupted"
    assert "2 of 3 jobs have not finished" in done.out
    assert "not started" in done.out


def on_disk(folder: Path) -> BaseFileLock:
    """A sweep under way: one job finished, one runs, one was killed, one failed, one has not started. Returns the lock
    of the one that runs."""
    jobs = [[f"drafter.depth={depth}"] for depth in range(5)]
    sweep.begin(folder, ["drafter.depth=0,1,2,3,4"], jobs, resume=False)
    states = (("finished", {"value": 1.5}), ("running", {}), ("running", {}), ("failed", {"error": "no [bold] luck"}))
    for number, (status, more) in enumerate(states):
        job = folder / str(number)
        head = {"training_tokens": None, "parameters_added": 0}
        summary = finished(job) if number < 2 else {}
        if number == 0:
            (job / "summary.json").write_text(json.dumps({**summary, **head}), "utf-8")
        job.mkdir(exist_ok=True)
        line = {"number": number, "overrides": jobs[number], "status": status, "process": this_process(), **more}
        (job / "job.json").write_text(json.dumps(line), "utf-8")
    return claim(folder / "1", resume=True)


def test_the_report_of_a_sweep_is_what_lies_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lock = on_disk(tmp_path)
    found = sweep.read(tmp_path)
    assert [job.status for job in found.jobs] == ["finished", "running", "killed", "failed", "not started"]
    assert found.jobs[0].value == 1.5
    report.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "4 of 5 jobs have not finished" in out
    assert "no [bold] luck" in out
    assert "its process ended without a word" in out
    assert (tmp_path / "report.html").exists()
    lines = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text("utf-8").splitlines()]
    assert [line["status"] for line in lines] == ["killed", "failed"]
    lock.release()


def test_a_search_may_take_a_number_twice(tmp_path: Path) -> None:
    head = {"training_tokens": None, "parameters_added": 0}
    for number, depth in enumerate((3, 2, 3)):
        job = tmp_path / str(number)
        (job / "summary.json").write_text(json.dumps({**finished(job), **head}), "utf-8")
        line = {"number": number, "overrides": [f"drafter.depth={depth}"], "status": "finished"}
        (job / "job.json").write_text(json.dumps(line), "utf-8")
    show(sweep.read(tmp_path), page=False)
    assert '"x":[2.0,3.0]' in (tmp_path / "sweep.html").read_text("utf-8")


def test_a_sweep_without_a_run_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep.begin(tmp_path, ["drafter=none"], [["drafter=none"]], resume=False)
    report.main([str(tmp_path)])
    assert "1 of 1 jobs have not finished" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_a_sweep_of_an_older_version_is_read(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        finished(tmp_path / str(number))
        (tmp_path / str(number) / ".hydra" / "overrides.yaml").write_text(f"- drafter.depth={number}\n", "utf-8")
    (tmp_path / "multirun.yaml").touch()
    found = sweep.read(tmp_path)
    assert [job.number for job in found.jobs] == [0, 1, 10]
    assert list(found.names.values()) == ["drafter.depth=0", "drafter.depth=1", "drafter.depth=10"]
    assert not found.unfinished
