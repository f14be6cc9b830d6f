"""Type checks at run time for our packages, and the models that tests share."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

import tests.support.typecheck  # noqa: F401  (the hook finds the checker by its dotted name)

# before the first import of what it checks; Dynamo cannot trace through the checks (test_graphs.py)
if "UNTYPED" not in os.environ:
    install_import_hook(["specdec", "drafters", "verifiers"], "tests.support.typecheck.check")

from experiments.sweeps.launch import launch
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.recipe import TrainBatch
from tests.support.browser import chromium, open_page
from tests.support.own_text import own_text

__all__ = ["chromium", "open_page"]  # one browser for all files: a process can drive no second


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models: threads cost more than they bring, and tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs of other code must not reach a test, nor those of a test others."""
    monkeypatch.setattr("specdec.model.proof.memory.recall", lambda _name: None)
    monkeypatch.setattr("specdec.model.proof.memory.remember", lambda _name, _proof: None)


@pytest.fixture(scope="session", autouse=True)
def _own_locks(tmp_path_factory: pytest.TempPathFactory):
    """Timed runs of tests wait neither for each other's processes nor for what else the machine measures."""
    os.environ["SPECDEC_LOCKS"] = str(tmp_path_factory.mktemp("locks"))


@pytest.fixture(scope="session")
def tiny() -> TargetModel:
    return load_tiny(device="cpu")


@pytest.fixture(scope="module")
def target() -> TargetModel:
    """Deeper, for drafters to be trained on."""
    return load_tiny(device="cpu", layers=4)


@pytest.fixture(scope="module")
def batch(target: TargetModel) -> TrainBatch:
    """Its own greedy text."""
    return own_text(target)


def tiny_draft(noise: float = 0.02) -> TargetModel:
    """The tiny target with noise on its weights: a draft model that is right often, not always."""
    draft = load_tiny(device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in draft.model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return draft


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple]:
    """Call an entry point in this process: its status, its `summary.json`, and what it printed."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(main: Callable[[], None], *overrides: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["entry", f"hydra.run.dir={tmp_path}", *overrides])
        status = 0
        try:
            launch(main)
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        file = tmp_path / "summary.json"
        return status, json.loads(file.read_text("utf-8")) if file.exists() else {}, captured.out + captured.err

    return run


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A profile of the tiny model, as `experiments.profile_target` writes it, with round figures."""
    points = [
        {"tokens": n, "prefix": p, "batch": b, "ms": {"quartiles": [9.0 + n * b] * 2}}
        for n in (1, 4)
        for p in (64, 128)
        for b in (1, 2)
    ]
    profile = {
        "target": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "ceilings": {"gb_per_second": 20.0, "gflop_per_second": 100.0},
        "points": points,
        "provenance": {"machine": {"cpu": "a CPU", "gpu": [], "memory_gib": 24.0}},
    }
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(profile), "utf-8")
    return file
