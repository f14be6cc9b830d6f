"""A run that is killed and run again is the uninterrupted one, bit for bit: every recipe, at random steps."""

from __future__ import annotations

import json
import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments import train
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.training import trainer
from specdec.training.checkpoints import Checkpoints
from specdec.training.text.features import complete
from specdec.training.text.self_distill import SelfDistillation
from specdec.training.text.shard import Shard
from specdec.training.text.texts import Origin
from specdec.training.trainer import Trainer
from tests.specdec.training.conftest import CONF, numbered
from tests.specdec.training.gradients import trainer as made_trainer
from tests.support.commands import Done, command

STEPS = 13
SHORT = [
    "training.batch_size=4", f"training.epochs={4 * STEPS / 64}", "training.longest=40", "reports.log_every=4",
    "reports.evaluate_every=5", "reports.checkpoint_every=3", "reports.validation_texts=2", "measure.prompts=1",
    "measure.max_new_tokens=4", "keep=1",
]  # fmt: skip
RECIPES = {
    "linear": [],
    "medusa": ["recipe.heads=2", "drafter.tree=3"],
    "hydra_heads": ["recipe.heads=2", "recipe.prefix=[-1]", "recipe.nodes=3", "recipe.soft=0.5"],
    "eagle": ["recipe.steps=2", "recipe.vocabulary=100"],
    "early_exit": ["drafter.exit_layer=1"],
    "draft_model": ["recipe.layers=[0,-1]", "recipe.on_policy=0.5", "recipe.on_policy_tokens=4", "recipe.whole=false"],
    "medusa2": ["drafter=medusa", "recipe=medusa2", "recipe.heads.heads=2", "recipe.rank=2", "drafter.tree=3"],
}
TINY = ["target=tiny", "target.device=cpu", "tracker=none", "allow_targets=[tests.specdec.training.]"]
CLOCK = ("tokens_per_second", "product_share", "peak_memory_mb")


class Killed(BaseException):
    """Nothing of ours catches it as an error, as nothing catches SIGKILL."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny: TargetModel) -> Path:
    """64 texts to train on and 3 held out, with what an early exit reads."""
    folder = tmp_path_factory.mktemp("short")
    with Shard(folder, 0, Origin.of(tiny)) as shard:
        SelfDistillation(tiny, numbered(67), StopRule(16, tiny.eos)).run(shard)
        complete(tiny, shard, ["layer:1"])
    return folder


@pytest.fixture
def run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Done]:
    monkeypatch.setattr(trainer, "product_rate", lambda *_: 1e9)  # seconds each; a figure that is not compared

    def call(folder: str, *overrides: str) -> Done:
        to = [f"data={data}", f"folder={tmp_path / folder}", f"hydra.searchpath=[file://{CONF}]"]
        begin = command(train.main, tmp_path / folder, monkeypatch, capsys)
        return begin(*TINY, *to, *SHORT, *overrides)

    return call


def left_behind(folder: Path) -> dict[str, Any]:
    """The log, the summary and the weights of a run, without what depends on the clock."""

    def timeless(line: str) -> dict[str, Any]:
        return {name: value for name, value in json.loads(line).items() if name not in CLOCK}

    weights = {
        f"{file.relative_to(folder)} {name}": weight.numpy().tobytes()
        for file in sorted((folder / "drafter").rglob("*.safetensors"))
        for name, weight in load_file(file).items()
    }
    log = (folder / "train.jsonl").read_text("utf-8").splitlines()
    assert weights
    return {
        "log": [timeless(line) for line in log],
        "summary": timeless((folder / "summary.json").read_text("utf-8")),
        **weights,
    }


def kill(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Make the next run die before step `at`, counted from 0; at `STEPS`, between the last checkpoint and its end."""
    whole = Trainer._step

    def dies(self: Trainer, step: int) -> Any:
        if step == at:
            raise Killed
        return whole(self, step)

    def ends(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(Trainer, "_step", dies)
    if at == STEPS:
        monkeypatch.setattr(train, "save_drafter", ends)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_killed_at_random_steps_is_the_uninterrupted_one(
    recipe: str, run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"drafter={recipe.replace('medusa2', 'medusa')}", *RECIPES[recipe]]
    done = run("whole", *options)
    assert done.status == 0, done.err
    for step in (np.random.default_rng(zlib.crc32(recipe.encode())).integers(4, STEPS), STEPS):
        with monkeypatch.context() as patched:
            kill(patched, step)
            with pytest.raises(Killed):
                run("killed", *options)
    done = run("killed", *options)
    assert done.status == 0, done.err
    assert f"resumed at step {STEPS} of {STEPS}" in done.err
    killed, whole = left_behind(tmp_path / "killed"), left_behind(tmp_path / "whole")
    assert killed == whole
    assert whole["summary"]["steps"] == STEPS
    assert {"loss", "validation/loss", "tokens_per_step"} <= set(whole["summary"])


@pytest.mark.parametrize("place", ["last step", "last checkpoint", "no step left"])
def test_a_signal_at_the_end_ends_the_run_and_the_next_one_finishes_it(
    place: str, run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(method: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        def call(self: Any, step: int, *rest: Any) -> Any:
            if when(step):
                os.kill(os.getpid(), signal.SIGTERM)
            return method(self, step, *rest)

        return call

    if place == "no step left":
        with monkeypatch.context() as patched:
            kill(patched, STEPS)
            with pytest.raises(Killed):
                run("run", "drafter=linear")
    kind, name, when = {
        "last step": (Trainer, "_step", lambda step: step == STEPS - 1),
        "last checkpoint": (Checkpoints, "save", lambda step: step == STEPS),
        "no step left": (Checkpoints, "load", lambda step: True),
    }[place]
    with monkeypatch.context() as patched:
        patched.setattr(kind, name, signalled(getattr(kind, name), when))
        done = run("run", "drafter=linear")
    assert done.status == 143
    assert f"interrupted: run the same command again to go on at step {STEPS}" in done.err
    folder = tmp_path / "run"
    assert json.loads((folder / "provenance.json").read_text("utf-8"))["status"] == "interrupted"
    assert not (folder / "summary.json").exists()
    done = run("run", "drafter=linear")
    assert done.status == 0, done.err
    assert json.loads((folder / "provenance.json").read_text("utf-8"))["status"] == "finished"
    assert json.loads((folder / "summary.json").read_text("utf-8"))["steps"] == STEPS


@pytest.mark.parametrize(
    ("file", "got"),
    [
        ("random_states_0.pkl", ""),
        ("figures.json", "Expecting"),
        ("optimizer.bin", ""),
        ("model.safetensors", ""),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(
    file: str, got: str, run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill(patched, 4)
        with pytest.raises(Killed):
            run("killed", "drafter=linear")
    torn = tmp_path / "killed" / "checkpoints" / "step-3" / file
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.warns(UserWarning, match="step-3 is damaged and left out"):
        done = run("killed", "drafter=linear")
    assert done.status == 2
    assert f"step-3: expected the whole checkpoint of a run of 1 processes, got {got}" in done.err
    assert "delete it, to go on from the checkpoint before" in done.err
    assert torn.exists()


def test_a_trained_drafter_has_a_card(run: Callable[..., Done], tmp_path: Path) -> None:
    assert run("made", "drafter=linear").status == 0
    text = (tmp_path / "made" / "drafter" / "README.md").read_text("utf-8")
    tokens = json.loads((tmp_path / "made" / "drafter" / "training.json").read_text("utf-8"))["tokens"]
    summary = json.loads((tmp_path / "made" / "summary.json").read_text("utf-8"))
    assert text.startswith("# linear for tiny\n")
    assert f"Recipe `linear`, {tokens:,} answer tokens" in text
    assert f"| tokens_per_step | {summary['tokens_per_step']:.4g} |" in text
    assert '"batch_size": 4' in text


def test_counting_operations_changes_nothing(data: Path) -> None:
    """The counter takes operators apart; the step that follows must not be one of those it watched."""
    made = []
    for counts in (True, False):
        one = made_trainer(data, 8, 1)
        state = torch.get_rng_state()
        if counts:
            assert one._counted(one._micro_batch(0)) > 0
            assert all(parameter.grad is None for parameter in one._model.parameters())
        assert torch.equal(torch.get_rng_state(), state)
        one.gradients(0)
        made.append([p.grad for p in one._model.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
