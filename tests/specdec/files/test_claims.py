"""A run's folder belongs to that run alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.files.claims import CLAIM, LOCK, claim, claim_new, lives

START = (
    "import sys; from pathlib import Path; from specdec.files.claims import claim, claim_new; "
    "folder = Path(sys.argv[1]);"
)
HOLD = START + " lock = claim(folder); print('held', flush=True); sys.stdin.read()"
NEW = START + " print(claim_new(folder)[0].name)"
NAMED = START + " claim(folder)"


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} - {LOCK, CLAIM}


def test_runs_that_begin_together_each_get_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        got = [done.stdout.strip() for done in pool.map(lambda _: python(NEW, tmp_path / "12-00-00"), range(4))]
    assert sorted(got) == ["12-00-00", "12-00-00-2", "12-00-00-3", "12-00-00-4"]


def test_a_live_folder_is_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        (folder / "steps.jsonl").write_text("{}\n")
        assert lives(folder)
        before = names(folder)
        done = python(NAMED, folder)
        line = done.stderr.strip().splitlines()[-1]
        assert "expected a folder that no other run is using" in line
        assert f"process {process.pid} on " in line
        assert names(folder) == before
    assert not lives(folder)


def test_a_killed_run_lives_no_more_and_its_folder_can_be_had(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert not lives(folder)
    claim(folder).release()


def test_asking_whether_it_lives_makes_nothing(tmp_path: Path) -> None:
    assert not lives(tmp_path)
    assert not list(tmp_path.iterdir())


def test_everything_of_an_earlier_run_is_set_aside_together(tmp_path: Path) -> None:
    folder, earlier = (
        tmp_path / "run",
        ("steps.jsonl", "trace.npz", ".hydra", ".hydra/config.yaml", "bench.log", "own.txt"),
    )
    for number in (1, 2):
        lock = claim(folder)
        assert names(folder) == {f"previous-{n}/{e}" for n in range(1, number) for e in earlier} | {
            f"previous-{n}" for n in range(1, number)
        }
        (folder / ".hydra").mkdir()
        for name in earlier:
            if name != ".hydra":
                (folder / name).write_text(str(number))
        claim(folder, keep=(".hydra", "*.log", "*")).release()  # claiming again is allowed
        lock.release()
    claim(folder).release()
    assert (folder / "previous-2" / "trace.npz").read_text() == "2"
    assert len(names(folder)) == 2 + 2 * len(earlier)


def test_files_that_are_no_runs_stay_in_a_folder_that_was_there_before(tmp_path: Path) -> None:
    for name in ("prompts.jsonl", "notes.txt", "steps.jsonl"):
        (tmp_path / name).touch()
    claim(tmp_path).release()
    assert names(tmp_path) == {"prompts.jsonl", "notes.txt", "previous-1", "previous-1/steps.jsonl"}


def test_setting_aside_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(folder).release()
    (folder / ".previous-1").mkdir()
    for name in (".previous-1/steps.jsonl", "summary.json"):
        (folder / name).touch()
    claim(folder).release()
    assert names(folder) == {"previous-1", "previous-1/steps.jsonl", "previous-1/summary.json"}


def test_a_run_that_is_resumed_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    claim(tmp_path, resume=True).release()
    assert names(tmp_path) == {"train.jsonl"}


@pytest.mark.parametrize("make", [claim, claim_new])
def test_a_folder_that_cannot_be_made_is_bad_input(make: object, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"expected a folder that can be written, got '.*run' \((Not a directory|File exists)\)"
    ):
        make(tmp_path / "file" / "run")  # type: ignore[operator]
