"""Locks on the devices of this machine, for independent processes.

A lock is a file lock, which the operating system releases when its process ends, also after a crash. The files are in
`$SPECDEC_LOCKS`, by default `locks` in the cache folder. Their names contain the machine's name, because the folder may
be shared between machines.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from specdec.files.home import cache_folder

POLL_SECONDS = 0.5


def lock_folder() -> Path:
    return Path(os.environ.get("SPECDEC_LOCKS") or cache_folder() / "locks")


@contextmanager
def timing(device: torch.device, say: Callable[[str], None], doing: str = "") -> Iterator[None]:
    """Lock a device for a timed run: other timed runs wait, other processes are not affected.

    Args:
        device: CPU, or a CUDA device; each GPU has its own lock, independent of its number in this process.
        say: called with one line before waiting for another run.
        doing: description shown to waiting processes, such as the run's folder.
    """
    lock = _lock(f"timing-{_name(device)}")
    holder = Path(lock.lock_file).with_suffix(".json")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"timing: waits for {_holder(holder)}, which is being timed on {device}; exclusive=false does not wait")
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        with suppress(OSError):  # only information for users
            holder.write_text(json.dumps({"pid": os.getpid(), "doing": doing}), "utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def first_free(names: Sequence[str], begin: int) -> tuple[str, FileLock | None]:
    """Choose and lock a device that no other process has locked.

    Args:
        names: names of the devices.
        begin: index of the device to try first.

    Returns:
        The device's name, and the lock, which the caller must keep. If all devices are locked, the device at `begin`
        and None.
    """
    for place in range(len(names)):
        name = names[(begin + place) % len(names)]
        lock = _lock(f"gpu-{name}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        return name, lock
    return names[begin % len(names)], None


def _lock(name: str) -> FileLock:
    folder = lock_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / (re.sub(r"[^\w.-]", "_", f"{platform.node()}-{name}") + ".lock"))


def _name(device: torch.device) -> str:
    """Return the device's type, or the UUID of a GPU, because its number differs between processes."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text("utf-8"))
        return f"process {found['pid']}" + (f" ({found['doing']})" if found["doing"] else "")
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
