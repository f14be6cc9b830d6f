"""What a run leaves behind: whole files, never mixed, and no tracker that kills a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.metrics import StepRecord
from specdec.runlog import NoTracker, RunLog, TrainLog, WandbTracker

STEP = StepRecord(
    0, 1, 1, 3, 3, 2, 3, [0, 1, 2], [7, 8, 9], {"draft": 1.0, "verify": 2.0, "accept": 0.1, "commit": 0.1}
)
CONTEXT = [{"prompt": "p1", "category": "math", "turn": 0, "repeat": 0}]
SUMMARY = {"tokens_per_step": 3.0, "acceptance_at_depth": [1.0, 1.0, 0.0]}


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
    assert {"command", "commit", "dirty_diff", "machine", "threads"} <= set(provenance)


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
    log = RunLog(tmp_path, WandbTracker(), {"seed": 0})
    log.steps([STEP, STEP], CONTEXT)
    log.finish(SUMMARY)
    assert log._mirror.tracker is not None, "the tracker was switched off"
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for word in (b"step/accepted", b"step/tokens_per_second", b"acceptance_at_depth", b"tokens_per_step"):
        assert word in content


def test_a_resumed_training_run_goes_on_in_its_files(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, NoTracker(), {})
    for step in (1, 2, 3, 4):
        log.report(step, {"loss": 5.0 - step})
    log.stop("interrupted")
    assert json.loads((tmp_path / "provenance.json").read_text())["status"] == "interrupted"
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
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
