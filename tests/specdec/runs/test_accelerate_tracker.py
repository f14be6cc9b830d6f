"""Trackers that accelerate knows: TensorBoard for real, the others by what they are called with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

import experiments.bench
from specdec.errors import InputError
from specdec.runs import accelerate_tracker
from specdec.runs.accelerate_tracker import AccelerateTracker
from specdec.runs.log import Label, RunLog, TrainLog
from tests.specdec.runs.test_log import CONTEXT, STEP, SUMMARY

TINY = ["target=tiny", "target.device=cpu", "report=false", "generation.max_new_tokens=4", "prompts.limit=2"]


class Noting(GeneralTracker):
    """Notes how it is called."""

    name = "noting"
    requires_logging_directory = False
    calls: list[tuple[Any, ...]]

    def __init__(self, project: str, **options: Any) -> None:
        type(self).calls = [("made", project, options)]

    def start(self) -> None: ...

    @property
    def tracker(self) -> None: ...

    def store_init_configuration(self, values: dict) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self.calls.append(("log", values, step))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> type[Noting]:
    """It stands in place of Trackio, which is not installed."""
    monkeypatch.setitem(accelerate_tracker.LOGGER_TYPE_TO_CLASS, "trackio", Noting)
    monkeypatch.setattr(accelerate_tracker, "get_available_trackers", lambda: ["trackio"])
    return Noting


def test_a_run_is_mirrored_under_its_name(noting: type[Noting], tmp_path: Path) -> None:
    config = {"seed": 0, "drafter": {"depth": 3, "tree": [1, 2], "model": None}}
    log = RunLog(tmp_path, AccelerateTracker("trackio", options={"space_id": "me/runs"}), config, Label("a job", "s"))
    log.steps([STEP, STEP], CONTEXT)
    log.finish({**SUMMARY, "by_category": {"a: b": {"speedup": 1.5}}, "note": "text", "worst": None})
    made, stored, steps, summary, end = noting.calls
    assert made == ("made", "specdec", {"space_id": "me/runs", "name": "a job"})
    plain = {"seed": 0, "drafter.depth": 3, "drafter.tree": "[1, 2]", "drafter.model": "None"}
    assert stored == ("config", {"run": "a job", "group": "s", **plain})
    assert (steps[1]["step/accepted"], steps[1]["step/verify_ms"], steps[2]) == (2, 2.0, 1)
    assert steps[1]["step/tokens_per_second"] == pytest.approx(3 / 3.2e-3)
    assert summary[1]["summary/acceptance_at_depth/3"] == 0.0
    assert summary[1]["summary/by_category/a_ b/speedup"] == 1.5
    assert not {"summary/note", "summary/worst"} & set(summary[1])
    assert end == ("finish",)


def test_training_is_logged_over_its_steps(noting: type[Noting], tmp_path: Path) -> None:
    log = TrainLog(tmp_path, AccelerateTracker("trackio"), {})
    log.report(7, {"loss": 0.5, "validation/loss": 0.25})
    log.finish({"tokens_per_step": 1.5}, {"drafter": tmp_path})
    assert noting.calls[2:4] == [
        ("log", {"loss": 0.5, "validation/loss": 0.25}, 7),
        ("log", {"summary/tokens_per_step": 1.5}, 0),
    ]


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    monkeypatch.setattr(accelerate_tracker, "get_available_trackers", lambda: ["tensorboard"])
    status, summary, out = call(experiments.bench.main, *TINY, "tracker=accelerate", "tracker.log_with=comet_ml")
    assert (status, summary) == (2, {})
    assert out.splitlines()[-1] == (
        "error: tracker.log_with: expected comet_ml, installed, got no such package; "
        "install it (pip install comet-ml), or use tracker=none"
    )


@pytest.mark.parametrize(("name", "fix"), [("tensorbord", "check the spelling"), ("wandb", "pass tracker=wandb")])
def test_an_unknown_name_is_one_line(name: str, fix: str) -> None:
    with pytest.raises(InputError, match=rf"tracker.log_with: expected one of aim, .*, got '{name}'; {fix}"):
        AccelerateTracker(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_a_run(call: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    status, summary, out = call(experiments.bench.main, *TINY, "tracker=accelerate", "tracker.log_with=tensorboard")
    assert status == 0, out
    assert "the tracker failed" not in out
    board = EventAccumulator(str(tmp_path / "tracked" / "specdec"))
    board.Reload()
    (speedup,) = board.Scalars("summary/speedup")
    assert speedup.value == pytest.approx(summary["speedup"], rel=1e-5)
    assert [point.step for point in board.Scalars("step/emitted")] == [1, 2]
