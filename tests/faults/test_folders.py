"""Two runs in one folder: the second is refused in one line, and the first goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from specdec.files.claims import LOCK, claim, lives
from specdec.training.text.shard import Shard
from specdec.training.text.texts import Origin
from tests.faults.processes import run
from tests.faults.scenarios import SCENARIOS


def held(hold: object, ready: Path) -> int:
    """A process that holds something until it is killed."""
    child = os.fork()
    if child == 0:
        kept = hold()  # type: ignore[operator]
        ready.touch()
        time.sleep(600)
        os._exit(kept is None)
    while not ready.exists():
        time.sleep(0.01)
    return child


@pytest.mark.fault("two runs in one folder")
@pytest.mark.parametrize("name", ["bench", "record", "sweep", "train", "simulate"])
def test_a_folder_in_use_is_refused(name: str, inputs: Path, folder: Path, tmp_path: Path) -> None:
    other = held(lambda: claim(folder / "run"), tmp_path / "ready")
    try:
        done = run(SCENARIOS[name].entry, SCENARIOS[name].arguments(folder, inputs), folder)
        assert done.status == 2, done.err
        assert "expected a folder that no other run is using" in done.error
        assert f"process {other} on " in done.error
        assert {path.name for path in (folder / "run").iterdir()} == {LOCK, ".claim.json"}
        assert lives(folder / "run")
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert not lives(folder / "run")


@pytest.mark.fault("two runs in one folder")
def test_text_that_is_being_written_is_refused(inputs: Path, folder: Path, tmp_path: Path) -> None:
    origin = Origin("tiny", "0", "0", 8, 8, "float16")
    other = held(lambda: Shard(folder / "text", 0, origin), tmp_path / "ready")
    try:
        done = run("self_distill", SCENARIOS["self_distill"].arguments(folder, inputs), folder)
        assert done.status == 2, done.err
        assert "writing" in done.error
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
