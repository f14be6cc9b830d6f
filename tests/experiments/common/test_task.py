"""Entry points can be sent to other processes, by name."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from experiments.common import composition, resources
from experiments.common.claiming import ClaimFolder
from experiments.common.task import Task
from specdec.files.claims import lives

ROOT = Path(__file__).resolve().parents[3]
ENTRY_POINTS = sorted(f.stem for f in (ROOT / "experiments").glob("*.py") if "@hydra.main" in f.read_text("utf-8"))


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_is_sent_by_name(name: str) -> None:
    task = import_module(f"experiments.{name}").main.__wrapped__
    assert isinstance(task, Task)
    data = pickle.dumps(task)  # what cloudpickle falls back on: it would take functions apart
    assert len(data) < 200
    sent = pickle.loads(data)
    assert isinstance(sent, Task)
    assert sent.__wrapped__ is task.__wrapped__


def test_what_the_command_line_allowed_is_sent_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "allow_targets=[my_package.]"])
    seen: list[DictConfig] = []

    def main(cfg: DictConfig) -> None:
        seen.append(cfg)

    with composition.checked_composition():
        _, (*_, allowed) = Task(main).__reduce__()
    assert allowed == ["my_package."]
    Task(main, allowed)(OmegaConf.create({"target": "tiny"}))
    assert seen == [{"target": "tiny", "allow_targets": ["my_package."]}]


def test_a_module_that_runs_is_imported_by_name() -> None:
    """In the process of `python -m experiments.bench` the module is called `__main__`; elsewhere it is not."""
    script = (
        "import pickle, runpy, sys; sys.argv = ['bench', '--info', 'defaults']\n"
        "from experiments.sweeps import launch\n"
        "launch.launch = lambda main: print(pickle.dumps(main.__wrapped__).hex())\n"
        "runpy.run_module('experiments.bench', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    task = pickle.loads(bytes.fromhex(done.stdout.strip().splitlines()[-1]))
    assert task.__module__ == "experiments.bench"


def test_callbacks_are_sent_without_their_locks(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"hydra": {"sweep": {"dir": str(tmp_path / "s")}, "overrides": {"hydra": [], "task": []}}}
    )
    here = ClaimFolder()
    here.on_multirun_start(config)
    there = pickle.loads(pickle.dumps(here))
    there.on_multirun_end(config)  # holds nothing
    assert lives(tmp_path / "s")
    here.on_multirun_end(config)
    assert not lives(tmp_path / "s")


def test_processes_see_one_gpu_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECDEC_LOCKS", str(tmp_path))
    monkeypatch.setattr(resources, "_held", [])
    script = (
        "from experiments.common.resources import take_one_gpu; import os\n"
        "take_one_gpu(1); print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    other = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "7\n"  # by the job's number
    resources.take_one_gpu(3)
    assert resources.os.environ["CUDA_VISIBLE_DEVICES"] == "4"  # the next that is free
    other.communicate("\n", timeout=120)
    for lock in resources._held:
        lock.release()


def test_a_job_sees_all_gpus_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    resources.take_one_gpu(3)
    assert "CUDA_VISIBLE_DEVICES" not in resources.os.environ
