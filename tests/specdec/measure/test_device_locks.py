"""Timed runs of one device take turns, in whatever process they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.common.resources import timed
from specdec.measure.device_locks import timing

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
HOLDER = (
    "import sys, torch; from specdec.measure.device_locks import timing\n"
    "with timing(torch.device('cpu'), print, 'runs/[first]'): print('holds', flush=True); sys.stdin.readline()\n"
)


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen:
    """Another process that holds the CPU until it is written to, or killed."""
    monkeypatch.setenv("SPECDEC_LOCKS", str(tmp_path))
    command = [sys.executable, "-c", HOLDER]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_a_timed_run_waits_for_another_and_says_so(holder: subprocess.Popen, ends: str) -> None:
    said: list[tuple[str, float]] = []

    def say(words: str) -> None:
        said.append((words, time.monotonic()))
        if ends == "killed":
            holder.kill()
        else:
            holder.stdin.write("\n")  # type: ignore[union-attr]
            holder.stdin.flush()  # type: ignore[union-attr]

    with timing(CPU, say):
        assert holder.wait(timeout=120) == (0 if ends == "done" else -9)
    (words, _) = said[0]
    assert words == (
        f"timing: waits for process {holder.pid} (runs/[first]), which is being timed on cpu; "
        "exclusive=false does not wait"
    )
    assert len(said) == 1


def test_a_run_that_is_not_exclusive_does_not_wait(holder: subprocess.Popen) -> None:
    with timed(CPU, exclusive=False, doing=""):
        assert holder.poll() is None


def test_a_free_device_is_taken_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_LOCKS", str(tmp_path / "made"))
    said: list[str] = []
    for _ in range(2):
        with timing(CPU, said.append):
            assert any(file.suffix == ".json" for file in (tmp_path / "made").iterdir())
    assert not said
    assert not any(file.suffix == ".json" for file in (tmp_path / "made").iterdir())


def test_two_timed_benches_take_turns(holder: subprocess.Popen, tmp_path: Path) -> None:
    """A bench loads beside a timed run, and measures after it."""
    command = [sys.executable, "-m", "experiments.bench", "target=tiny", "tracker=none", "report=false"]
    command += [f"hydra.run.dir={tmp_path / 'run'}", "prompts.limit=1", "generation.max_new_tokens=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    bench = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert bench.stderr is not None
    for line in bench.stderr:
        if line.startswith("timing: waits"):
            break
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "steps.jsonl").stat().st_size == 0
    holder.communicate("\n", timeout=120)
    bench.communicate(timeout=300)
    assert bench.returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()
