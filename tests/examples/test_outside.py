"""Parts outside of the clone: examples/outside runs from its own folder, as docs/launching.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["target=tiny", "target.device=cpu", "report=false", "prompts.limit=1", "generation.max_new_tokens=4"]
PARTS = ["drafter=last_token", "tracker=text"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples" / "outside", tmp_path / "mine"))


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.bench", "--config-dir", "conf", *arguments, *TINY, *PARTS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_sweep_takes_a_drafter_and_a_tracker_from_outside(outside: Path) -> None:
    done = start(outside, "-m", "allow_targets=[my_parts.]", "drafter.depth=1,2")
    assert done.returncode == 0, done.stderr
    assert "2 jobs have not finished" not in done.stdout
    lines = (outside / "runs.txt").read_text("utf-8").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["drafter.depth=1", "drafter.depth=2"]


def test_they_have_to_be_allowed(outside: Path) -> None:
    done = start(outside)
    assert done.returncode == 2
    assert "pass allow_targets=[my_parts.text_tracker.] on the command line" in done.stderr or (
        "pass allow_targets=[my_parts.last_token.] on the command line" in done.stderr
    )
    assert not (outside / "runs.txt").exists()
