"""A run leaves whole files, never mixed, and no tracker kills a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import InputError
from specdec.metrics import StepRecord
from specdec.runs.log import CARD, Label, NoTracker, RunLog, TrainLog, WandbTracker
from tests.support.wandb_files import wandb_records, whole_file

STEP = StepRecord(
    0, 1, 1, 3, 3, 2, 3, [0, 1, 2], [7, 8, 9], {"draft": 1.0, "verify": 2.0, "accept": 0.1, "commit": 0.1}
)
CONTEXT = [{"prompt": "p1", "category": "math", "turn": 0, "repeat": 0}]
OF_CATEGORY = {"speedup": 1.5, "tokens_per_step": 3.0, "acceptance_rate": 0.5, "tokens_per_second": 9.0}
SUMMARY = {
    "tokens_per_step": 3.0,
    "acceptance_at_depth": [1.0, 1.0, 0.0],
    "emitted_histogram": [0, 1, 5],
    "phase_ms": {"draft": 1.0, "verify": 2.0},
    "by_category": {"math": OF_CATEGORY},
}


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_run_leaves_steps_summary_and_provenance(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", NoTracker(), {})
    log.steps([STEP], CONTEXT)
    log.finish(SUMMARY)
    (step,) = lines(tmp_path / "run" / "steps.jsonl")
    assert (step["prompt"], step["accepted"], step["tokens"], step["ms"]["verify"]) == ("p1", 2, [7, 8, 9], 2.0)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == SUMMARY
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["status"] == "finished"
    assert provenance["packages"]["torch"].startswith("2.")
    assert {"command", "commit", "changes", "machine", "threads"} <= set(provenance)


def test_an_early_end_keeps_the_steps_and_says_so(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NoTracker(), {})
    log.steps([STEP], CONTEXT)
    log.stop("interrupted")
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert (provenance["status"], provenance["steps"]) == ("interrupted", 1)
    assert not (tmp_path / "summary.json").exists()


def test_a_second_run_in_a_folder_starts_clean_and_loses_nothing(tmp_path: Path) -> None:
    for prompt in ("first", "second", "third"):
        log = RunLog(tmp_path, NoTracker(), {})
        log.steps([STEP], [{"prompt": prompt}])
        log.finish({"prompt": prompt})
    assert [line["prompt"] for line in lines(tmp_path / "steps.jsonl")] == ["third"]
    assert [line["prompt"] for line in lines(tmp_path / "previous-1" / "steps.jsonl")] == ["first"]
    assert json.loads((tmp_path / "previous-2" / "summary.json").read_text()) == {"prompt": "second"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"hydra.run.dir: expected a folder that can be written, got .*file.*run.dir="):
        RunLog(tmp_path / "file", NoTracker(), {})


class Broken(NoTracker):
    def __init__(self, call: str) -> None:
        self._call = call

    def __getattribute__(self, name: str) -> object:
        if name in ("start", "steps", "finish") and name == super().__getattribute__("_call"):
            raise ConnectionError("no network")
        return super().__getattribute__(name)


@pytest.mark.parametrize("call", ["start", "steps", "finish"])
def test_a_tracker_that_fails_warns_and_the_run_goes_on(tmp_path: Path, call: str) -> None:
    def run() -> None:
        log = RunLog(tmp_path, Broken(call), {})
        log.steps([STEP], CONTEXT)
        log.finish(SUMMARY)

    with pytest.warns(UserWarning, match="the tracker failed and is switched off, the JSON files go on: .*no network"):
        run()
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    assert len(lines(tmp_path / "steps.jsonl")) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_mirrors_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    label = Label("drafter.depth=[1, 2], acceptance=exact", "12-00-00/sweep")
    log = RunLog(tmp_path / "sweep" / "0", WandbTracker(), {"seed": 0}, label)
    log.steps([STEP, STEP], CONTEXT)

    def report(folder: Path) -> Path:
        (folder / "report.html").write_text("<!doctype html>", "utf-8")
        return folder / "report.html"

    log.finish(SUMMARY, report)
    assert log._mirror.tracker is not None, "the tracker was switched off"
    records = wandb_records(whole_file(tmp_path / "sweep" / "0"))
    logged = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [line["step/accepted"] for line in logged if "step/accepted" in line] == [2, 2]
    charts = {name: value for line in logged for name, value in line.items()}
    assert charts["emitted_tokens_per_step/values"] == [0, 1, 5]
    assert [charts[f"{name}_table/nrows"] for name in ("acceptance_at_depth", "phase_ms", "by_category")] == [3, 2, 1]
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["tokens_per_step"] == 3.0
    assert summary["acceptance_at_depth/3"] == 0.0
    assert summary["phase_ms/verify"] == 2.0
    (artifact,) = [
        record.artifact for record in records if record.HasField("artifact") and record.artifact.type == "report"
    ]
    assert [entry.path for entry in artifact.manifest.contents] == ["report.html"]
    called = {(record.run.display_name, record.run.run_group) for record in records if record.HasField("run")}
    assert called == {tuple(label)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_keeps_a_trained_drafter_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    drafter = tmp_path / "drafter"
    drafter.mkdir()
    (drafter / CARD).write_text("# ngram for tiny", "utf-8")
    (drafter / "drafter.safetensors").write_bytes(b"weights")
    log = TrainLog(tmp_path / "run", WandbTracker(), {})
    log.report(3, {"loss": 0.5})
    log.finish({"tokens_per_step": 1.5}, {"drafter": drafter})
    records = wandb_records(whole_file(tmp_path / "run"))
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert (artifact.type, artifact.description) == ("drafter", "# ngram for tiny")
    assert {entry.path for entry in artifact.manifest.contents} == {CARD, "drafter.safetensors"}


def test_a_report_that_fails_leaves_the_run_whole(tmp_path: Path) -> None:
    def report(folder: Path) -> Path:
        raise RuntimeError("no pictures")

    log = RunLog(tmp_path, NoTracker(), {})
    with pytest.warns(UserWarning, match="the report could not be drawn, the JSON files are whole: .*no pictures"):
        log.finish(SUMMARY, report)
    assert json.loads((tmp_path / "provenance.json").read_text())["status"] == "finished"


def test_a_resumed_training_run_goes_on_in_its_files(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, NoTracker(), {})
    for step in (1, 2, 3, 4):
        log.report(step, {"loss": 5.0 - step})
    log.stop("interrupted")
    assert json.loads((tmp_path / "provenance.json").read_text())["status"] == "interrupted"
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{]\n[1]\n{"step": "1"}\n{"step": 5, "lo')  # damaged, then killed while writing
    log = TrainLog(tmp_path, NoTracker(), {}, step=2)
    log.report(3, {"loss": 2.5})
    log.finish({"loss": 2.5})
    assert lines(tmp_path / "train.jsonl") == [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 3.0},
        {"step": 3, "loss": 2.5},
    ]
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert (provenance["status"], provenance["resumed_at"]) == ("finished", 2)


def test_a_training_run_begun_anew_starts_clean(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        log = TrainLog(tmp_path, NoTracker(), {})
        log.report(1, {"loss": loss})
        log.finish({})
    assert lines(tmp_path / "train.jsonl") == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("log", [RunLog, TrainLog])
def test_a_run_that_is_stopped_while_its_tracker_starts_says_so(log: type[RunLog | TrainLog], tmp_path: Path) -> None:
    class Slow(NoTracker):
        def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, Slow(), {})
    assert json.loads((tmp_path / "provenance.json").read_text())["status"] == "interrupted"
