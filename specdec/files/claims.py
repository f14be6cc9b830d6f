"""Lock a run's folder for that run, from before its first file until its process ends.

.lock         held by the process of the run (`filelock`); the run is running if and only if the lock is held
.claim.json   host and pid of the process that locked the folder, and whether a run made the folder
previous-1/   all files of the earlier run in the folder, moved aside together
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from specdec.errors import InputError
from specdec.files.durable import remove_unfinished, sync, write_json

LOCK, CLAIM, PREVIOUS = ".lock", ".claim.json", "previous-"
HYDRA = (".hydra", "*.log")  # files that Hydra writes before a job begins
RUN = (  # files of a run in a folder that the user made; in a folder that a run made, all files are the run's
    *HYDRA, "steps.jsonl", "generations.jsonl", "train.jsonl", "summary.json", "provenance.json", "trace.npz", "wandb",
    "tracked", "report.html", "profile.json", "roofline.json", "plan.json", "published.json", "multirun.yaml",
    "sweep.html",
)  # fmt: skip
_WAIT = 1.0  # seconds to wait for the lock, because `lives` holds it for a moment


def claim_new(folder: Path) -> tuple[Path, FileLock]:
    """Make and lock a new folder: `folder`, or the first of `folder-2`, `folder-3`, ... that does not exist.

    Returns:
        The folder and its lock.

    Raises:
        InputError: the folder cannot be made.
    """
    for number in count(2):
        with _writable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                folder = folder.with_name(f"{folder.name.removesuffix(f'-{number - 1}')}-{number}")
                continue
            return folder, _locked(folder, made=True)
    raise AssertionError


def claim(folder: Path, *, resume: bool = False, keep: Sequence[str] = ()) -> FileLock:
    """Lock a folder for a run. An earlier run in it is moved to `previous-N`.

    Args:
        folder: made if it does not exist. Files that belong to no run stay in place.
        resume: leave the earlier run's files in place; the new run continues them.
        keep: patterns of file names that belong to the new run already.

    Returns:
        The lock, held until this process ends or releases it. The same process may lock a folder twice.

    Raises:
        InputError: another process is running in the folder, or the folder cannot be written.
    """
    with _writable(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, made or not any(folder.iterdir()))
        if not resume:
            _set_aside(folder, keep)
        return lock


def lives(folder: Path) -> bool:
    """Return whether a running process holds the lock of this folder."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # also on file systems without locks; there the file exists only while the process runs
    finally:
        os.close(file)
    return False


def _locked(folder: Path, made: bool) -> FileLock:
    lock = FileLock(folder.absolute() / LOCK, timeout=_WAIT, is_singleton=True)
    mine = lock.is_locked
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            "hydra.run.dir", expected="a folder that no other run is using",
            got=f"{str(folder)!r}, where {_holder(folder)} is running",
            fix="wait for it, stop it, or choose another folder",
        ) from error  # fmt: skip
    if not mine:
        remove_unfinished(folder)
        made = made or bool(_read(folder / CLAIM).get("made"))
        write_json(folder / CLAIM, {"host": platform.node(), "pid": os.getpid(), "made": made})
    return lock


def _set_aside(folder: Path, keep: Sequence[str]) -> None:
    """Move an earlier run to `previous-N`. If this is interrupted, the next call completes it."""
    moving = next(iter(folder.glob(f".{PREVIOUS}*")), None)
    whole = _read(folder / CLAIM).get("made", False)
    earlier = [path for path in sorted(folder.iterdir()) if not _stays(path, keep) and (whole or _named(path, RUN))]
    if moving is None:
        if not earlier:
            return
        number = next(n for n in count(1) if not (folder / f"{PREVIOUS}{n}").exists())
        moving = folder / f".{PREVIOUS}{number}"
        moving.mkdir()
    for path in earlier:
        path.rename(moving / path.name)
    moving.rename(folder / moving.name[1:])
    sync(folder)


def _stays(path: Path, keep: Sequence[str]) -> bool:
    ours = path.name in (LOCK, CLAIM) or path.name.startswith((PREVIOUS, f".{PREVIOUS}"))
    return ours or _named(path, keep)


def _named(path: Path, patterns: Sequence[str]) -> bool:
    return any(path.match(pattern) for pattern in patterns)


def _holder(folder: Path) -> str:
    found = _read(folder / CLAIM)
    return f"process {found['pid']} on {found['host']}" if {"pid", "host"} <= set(found) else "another process"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or os.strerror(error.errno or errno.EIO)
        raise InputError(
            "hydra.run.dir", expected="a folder that can be written", got=f"{str(folder)!r} ({why})",
            fix="choose another folder with hydra.run.dir=...",
        ) from error  # fmt: skip
