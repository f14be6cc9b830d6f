"""A disk that is full, read-only, broken, limited or gone: one line that names the path, and what is finished stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.processes import failing, run
from tests.faults.scenarios import SCENARIOS, require_whole_files

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
POINTS = [
    (name, number, part) for name in ("bench", "train", "self_distill") for number in ERRORS for part in (0.4, 0.9)
]


def mounted(folder: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("this user cannot mount")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted(place, "size=8m")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault("error of the operating system")
@pytest.mark.parametrize(("name", "number", "part"), POINTS, ids=lambda value: errno.errorcode.get(value, str(value)))
def test_an_error_is_one_line_and_the_run_goes_on_later(
    name: str, number: int, part: float, whole: Callable[[str], Whole], inputs: Path, folder: Path
) -> None:
    scenario = SCENARIOS[name]
    arguments = scenario.arguments(folder, inputs)
    done = run(scenario.entry, arguments, folder, at=int(whole(name).changes * part), act=failing(number))
    assert "Traceback" not in done.err
    if done.status:  # otherwise what failed was not needed, such as the lines of a log
        assert done.status == 2
        assert os.strerror(number) in done.error
    require_whole_files(folder)
    done = run(scenario.entry, arguments, folder)
    assert done.status == 0, done.err
    assert scenario.result(folder) == whole(name).result


@pytest.mark.fault("full disk")
@pytest.mark.parametrize("name", ["bench", "train", "self_distill"])
@pytest.mark.parametrize("left", [0, 4096, 20000])
def test_a_full_disk(name: str, left: int, inputs: Path, disk: Path) -> None:
    scenario = SCENARIOS[name]
    folder = disk / "place"
    folder.mkdir()
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(bytes(max(free - left, 0)))
    done = run(scenario.entry, scenario.arguments(folder, inputs), disk.parent / "watched")
    assert done.status == 2, done.err
    assert "No space left on device" in done.error or "GiB of disk" in done.error
    assert str(disk) in done.error or "disk: " in done.error
    require_whole_files(folder)
    (disk / "ballast").unlink()
    done = run(scenario.entry, scenario.arguments(folder, inputs), disk.parent / "watched")
    assert done.status == 0, done.err


@pytest.mark.fault("read-only disk")
@pytest.mark.parametrize("name", ["bench", "train", "self_distill", "simulate", "convert_heads"])
def test_a_read_only_disk(name: str, inputs: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    scenario = SCENARIOS[name]
    done = run(scenario.entry, scenario.arguments(disk, inputs), disk.parent / "watched")
    assert done.status == 2, done.err
    assert str(disk) in done.error
    assert "Read-only file system" in done.error


@pytest.mark.fault("read-only SPECDEC_HOME")
def test_a_read_only_home(inputs: Path, folder: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    arguments = SCENARIOS["bench"].arguments(folder, inputs)
    done = run("bench", arguments, folder, environment={"SPECDEC_HOME": str(disk)})
    assert done.status == 0, done.err
    assert f"SPECDEC_HOME: {disk} cannot be written (Read-only file system)" in done.err


@pytest.mark.fault("limit on the size of files")
@pytest.mark.parametrize("name", ["bench", "train", "self_distill", "record"])
def test_a_limit_on_the_size_of_files(name: str, inputs: Path, folder: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    scenario = SCENARIOS[name]
    done = run(scenario.entry, scenario.arguments(folder, inputs), folder, prepare=limit)
    assert done.status == 2, done.err
    assert "File too large" in done.error
    require_whole_files(folder)


@pytest.mark.fault("folder that vanishes")
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["bench", "train", "self_distill"])
def test_a_folder_that_vanishes(
    name: str, part: float, whole: Callable[[str], Whole], inputs: Path, folder: Path
) -> None:
    scenario = SCENARIOS[name]
    target = folder / ("text" if name == "self_distill" else "run")
    vanish = lambda: shutil.rmtree(target, ignore_errors=True)  # noqa: E731
    done = run(
        scenario.entry, scenario.arguments(folder, inputs), folder, at=int(whole(name).changes * part), act=vanish
    )
    assert "Traceback" not in done.err
    if done.status:
        assert done.status == 2
        assert str(folder) in done.error


@pytest.mark.fault("output that nobody reads")
@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("place", ["closed", "/dev/full", "pipe"])
def test_output_that_nobody_reads(place: str, stream: int, inputs: Path, folder: Path) -> None:
    def break_it() -> None:
        if place == "closed":
            os.close(stream)
            return
        reads, handle = os.pipe() if place == "pipe" else (None, os.open(place, os.O_WRONLY))
        if reads is not None:
            os.close(reads)
        os.dup2(handle, stream)

    done = run("bench", SCENARIOS["bench"].arguments(folder, inputs), folder, prepare=break_it)
    assert done.status == 0, done.err
    assert (folder / "run" / "summary.json").exists()


@pytest.mark.fault("narrow terminal")
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}, {"LC_ALL": "C"}], ids=str)
def test_a_narrow_terminal(variables: dict[str, str], inputs: Path, folder: Path) -> None:
    done = run("bench", SCENARIOS["bench"].arguments(folder, inputs), folder, environment=variables)
    assert done.status == 0, done.err
    assert "tokens" in done.out
