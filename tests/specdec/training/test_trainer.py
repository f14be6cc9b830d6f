"""`python -m experiments.train` as a user meets it: it learns, resumes exactly, and splits its work exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments import train
from experiments.common.entry import SOME_FAILED
from experiments.sweeps.launch import launch
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe
from specdec.training.trainer import parameter_groups
from tests.specdec.training.conftest import CONF
from tests.specdec.training.gradients import gradients
from tests.specdec.training.linear_head import LinearRecipe
from tests.support.commands import Done, command
from tests.support.wandb_files import whole_file

ROOT = Path(__file__).resolve().parents[3]
TINY = [f"hydra.searchpath=[file://{CONF}]", "drafter=linear", "target=tiny", "target.device=cpu", "tracker=none",
        "allow_targets=[tests.specdec.training.]"]  # fmt: skip
SHORT = ["training.epochs=2", "training.batch_size=8", "reports.log_every=1", "reports.checkpoint_every=5"]
ROUNDING = 1e-6  # gradients of order 0.1, the same sums in another order
SPEEDS = ("tokens_per_second", "product_share")


@pytest.fixture
def run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Done]:
    call = command(train.main, tmp_path / "run", monkeypatch, capsys)
    return lambda *overrides: call(*TINY, f"data={data}", f"folder={tmp_path / 'run'}", *overrides)


def lines(folder: Path) -> list[dict[str, Any]]:
    """`train.jsonl` without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name not in SPEEDS} for record in records]


def test_tokens_per_step_rise(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run("training.epochs=8", "training.learning_rate=5e-3", "reports.evaluate_every=30", "reports.log_every=20")
    assert done.status == 0, done.err
    folder = tmp_path / "run"
    taus = [line["tokens_per_step"] for line in lines(folder) if "tokens_per_step" in line]
    assert taus[0] < 1.1
    assert taus[-1] > 1.2
    losses = [line["validation/loss"] for line in lines(folder) if "validation/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    logged = [record for record in records if "loss" in record]
    assert all(0 < record["product_share"] < 1.5 for record in logged)  # the clock of a shared machine
    assert all(record["top1"] <= record["top5"] <= 1 for record in logged)
    assert load_file(folder / "drafter" / "head.safetensors")["1.weight"].shape == (64, 64)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["tokens_per_step"] == taus[-1]
    assert summary["peak_memory_mb"] > 0
    assert json.loads((folder / "provenance.json").read_text("utf-8"))["status"] == "finished"
    assert (folder / ".hydra" / "config.yaml").exists()


def test_a_run_killed_and_run_again_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: figures and weights are equal bit for bit, dropout's random numbers included."""
    command = [sys.executable, "-m", "experiments.train", *TINY, *SHORT, f"data={data}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, f"folder={tmp_path / 'killed'}"], cwd=ROOT, env=environment)
    file = tmp_path / "killed" / "train.jsonl"
    deadline = time.monotonic() + 200
    while not (file.exists() and file.read_text().count("\n") > 9) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed_at = lines(tmp_path / "killed")[-1]["step"]
    assert 5 < killed_at < 39, "killed too early or too late to prove anything"
    (tmp_path / "killed" / "checkpoints" / "step-99.unfinished").mkdir()  # a checkpoint that was being written
    for folder in ("killed", "undisturbed"):
        subprocess.run([*command, f"folder={tmp_path / folder}"], cwd=ROOT, env=environment, check=True)
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed")
    weights = [load_file(tmp_path / folder / "drafter" / "head.safetensors") for folder in ("killed", "undisturbed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    resumed = json.loads((tmp_path / "killed" / "provenance.json").read_text("utf-8"))["resumed_at"]
    assert 5 <= resumed <= killed_at
    kept = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-??"))
    assert len(kept) == 2


def test_a_finished_run_is_not_trained_again(run: Callable[..., Done], tmp_path: Path) -> None:
    run(*SHORT)
    before = lines(tmp_path / "run")
    done = run(*SHORT)
    assert done.status == 0
    assert f"resumed at step {before[-1]['step']} of {before[-1]['step']}" in done.err
    assert lines(tmp_path / "run") == before


def test_a_resumed_run_whose_config_changed_is_refused(run: Callable[..., Done], tmp_path: Path) -> None:
    run(*SHORT)
    done = run(*SHORT, "training.learning_rate=0.5", "recipe.dropout=0.2", "keep=1")
    assert done.status == 2
    assert (
        "expected the config its run was begun with, got other values of recipe.dropout (was 0.1, is 0.2), " in done.err
    )
    assert "training.learning_rate (was 0.001, is 0.5); restore them" in done.err
    assert "keep" not in done.err.partition("got other values")[2]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_have_the_gradients_of_one(data: Path, tmp_path: Path, accumulation: int) -> None:
    """`--multi_gpu` is accelerate's word for several processes; on a CPU they talk through gloo. (Its `--cpu` starts a
    single one, whatever `--num_processes` says, unless there is MPI.)"""
    alone, processes = gradients(data, 16, 1)
    assert processes == 1
    out = tmp_path / "gradients.pt"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    arguments = ["-m", "tests.specdec.training.gradients", str(data), str(out), "16", str(accumulation)]
    port = ["--main_process_port", "0"]
    subprocess.run([*launcher, *port, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    together = torch.load(out, weights_only=True)
    assert together["processes"] == 2
    assert set(together["gradients"]) == set(alone)
    for name, gradient in together["gradients"].items():
        assert gradient.abs().max() > 0.01
        torch.testing.assert_close(gradient, alone[name], atol=ROUNDING, rtol=0.0)


def test_nothing_holds_the_process_group_at_the_end() -> None:
    """A model in a cycle would keep the group's threads running while the interpreter shuts down."""
    code = """
import torch, weakref
from torch.distributed import HashStore
from specdec.training.processes import process_group_ends
def work():
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.itself = [model]
    model(torch.ones(1, 2)).sum().backward()
    return weakref.ref(model)
with process_group_ends():
    model = work()
assert model() is None and not torch.distributed.is_initialized()
try:
    with process_group_ends():
        work()
        raise RuntimeError("an error")
except RuntimeError:
    assert not torch.distributed.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_micro_batches_have_the_gradients_of_the_whole(data: Path) -> None:
    whole, parts = gradients(data, 16, 1)[0], gradients(data, 16, 8)[0]
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=ROUNDING, rtol=0.0)


def test_learning_rates_by_part() -> None:
    module = torch.nn.ModuleDict({"heads": torch.nn.Linear(2, 2), "backbone": torch.nn.Linear(2, 2)})
    groups = parameter_groups(module, {"backbone": 0.25})
    assert [(group["lr_scale"], len(group["params"])) for group in groups] == [(1.0, 2), (0.25, 2)]
    with pytest.raises(InputError, match=r"recipe.lr_scale: expected parts of the module \(backbone, heads\), got"):
        parameter_groups(module, {"head": 0.25})
    with pytest.raises(InputError, match="expected a module with parameters to train, got none"):
        parameter_groups(module.requires_grad_(False), {})


def test_the_linear_recipe_is_one() -> None:
    assert isinstance(LinearRecipe(), Recipe)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_mirrors_training(run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert run(*SHORT, "training.epochs=0.2", "tracker=wandb").status == 0
    written = whole_file(tmp_path / "run").read_bytes()
    for word in (b"validation/loss", b"tokens_per_step", b"product_share", b"top5"):
        assert word in written


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.accumulation=3"],
            "training.batch_size: expected a multiple of 3 (processes x training.accumulation)",
        ),
        (["training.batch_size=0"], "training.batch_size: expected an integer >= 1, got 0; change it"),
        (["target.seed=1"], "expected text made with the target of tiny"),
        (["data=nowhere"], "nowhere: expected a folder of self-distilled text, got no readable index.json"),
        (["training.learning_rate=1e37"], "training: expected a finite loss, got"),
        (
            ["drafter=ngram"],
            "recipe: expected one of draft_model, eagle, early_exit, hydra_heads, linear, medusa, medusa2, got 'ngram'",
        ),
        (["++recipe.lr_scale.nothing=2.0"], "recipe.lr_scale: expected parts of the module (1), got ['nothing']"),
    ],
)
def test_bad_input(run: Callable[..., Done], overrides: list[str], message: str) -> None:
    done = run(*SHORT, *overrides)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_features_that_are_not_stored(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tiny: TargetModel
) -> None:
    honest = LinearRecipe.__init__

    def wants_more(self: LinearRecipe, *args: Any, **options: Any) -> None:
        honest(self, *args, **options)
        self.features = ["layer:1"]

    monkeypatch.setattr(LinearRecipe, "__init__", wants_more)
    done = run(*SHORT)
    assert done.status == 2
    assert "expected the feature 'layer:1' of every sequence, got none for" in done.err
    assert "run experiments.self_distill on the folder with features=[layer:1]" in done.err


def test_a_sweep_trains_each_job_in_its_own_folder_and_takes_it_up_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "sweep"
    options = [f"hydra.sweep.dir={folder}", *TINY, *SHORT, f"data={data}", "objective=speedup", "measure.prompts=2"]
    rates = "training.learning_rate=1e-3,-1,1e-2"

    def start(*more: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["train", "-m", *options, rates, *more])
        status = 0
        try:
            launch(train.main)
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    assert start().status == SOME_FAILED
    for number in (0, 2):
        summary = json.loads((folder / str(number) / "summary.json").read_text("utf-8"))
        assert (
            json.loads((folder / str(number) / "job.json").read_text("utf-8"))["value"] == summary["worth"]["speedup"]
        )
    (line,) = (folder / "failed.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["name"] == "training.learning_rate=-1"

    # as if the machine had gone down at the first checkpoint of job 2
    record = json.loads((folder / "2" / "job.json").read_text("utf-8"))
    (folder / "2" / "job.json").write_text(json.dumps({**record, "status": "running"}), "utf-8")
    again = start("sweep.resume=true")
    assert "job 0" in again.err
    assert again.err.count("finished before, kept") == 1
    assert "resumed at step" in again.err

    refused = start("folder=runs/mine", f"hydra.sweep.dir={tmp_path / 'other'}")
    assert refused.status == SOME_FAILED
    assert "folder: expected none in a sweep: each job trains in its own, got folder=runs/mine" in refused.err
