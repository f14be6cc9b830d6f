"""A run's folder belongs to that run alone, from before its first file until its process ends.

.lock         held by the run while it lives (`filelock`): a run lives if and only if its lock is held
.claim.json   which process claimed the folder, and whether it made the folder
previous-1/   everything of the run that was here before, set aside together
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
HYDRA = (".hydra", "*.log")  # what Hydra writes before a job begins
RUN = (  # what runs leave in a folder that was there before them; of a folder that a run made, everything is the run's
    *HYDRA, "steps.jsonl", "generations.jsonl", "train.jsonl", "summary.json", "provenance.json", "trace.npz", "wandb",
    "tracked", "report.html", "profile.json", "roofline.json", "plan.json", "published.json", "multirun.yaml",
    "sweep.html",
)  # fmt: skip
_WAIT = 1.0  # seconds: whoever asks whether a run lives holds its lock for a moment


def claim_new(folder: Path) -> tuple[Path, FileLock]:
    """Claim a folder that nobody has: `folder`, or the first of `folder-2`, `folder-3` ... that does not exist.

    Raises:
        InputError: a folder that cannot be made.
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
    """Claim a named folder. An earlier run in it is set aside in `previous-N`, whole.

    Args:
        folder: made if it does not exist. Files that are no run's stay where they are.
        resume: leave everything in place; the run goes on with what is there.
        keep: patterns of names that are this run's already.

    Returns:
        The lock, which this process holds until it ends or releases it; claiming twice is allowed.

    Raises:
        InputError: a run in it lives; a folder that cannot be written.
    """
    with _writable(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder, made or not any(folder.iterdir()))
        if not resume:
            _set_aside(folder, keep)
        return lock


def lives(folder: Path) -> bool:
    """Whether a run holds this folder now."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # also on file systems without locks: there the file exists only while a run lives
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
    """Move an earlier run away. If this is cut short, the next claim goes on with it: a run is never split."""
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
