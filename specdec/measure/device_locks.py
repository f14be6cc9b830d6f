"""Locks on the devices of this machine, for processes that know nothing of each other.

A lock is a file that the operating system frees when its process ends, however it ends. The files lie in
`$SPECDEC_LOCKS`, by default `locks` in the cache folder; their names hold the machine's, as folders may be shared.
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
    """Hold a device for a timed run; other timed runs wait, everything else goes on.

    Args:
        device: CPU, or a CUDA device; every GPU has a lock of its own, whatever number it has in this process.
        say: called with one line if another run is being timed, before waiting for it.
        doing: shown to those who wait, such as the run's folder.
    """
    lock = _lock(f"timing-{_name(device)}")
    holder = Path(lock.lock_file).with_suffix(".json")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"timing: waits for {_holder(holder)}, which is being timed on {device}; exclusive=false does not wait")
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        with suppress(OSError):  # for people only
            holder.write_text(json.dumps({"pid": os.getpid(), "doing": doing}), "utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def first_free(names: Sequence[str], begin: int) -> tuple[str, FileLock | None]:
    """Choose a device that no other process has chosen, counted from `begin`, and hold it.

    Returns:
        The device's name and the lock to keep; if all are taken, the device at `begin`, shared, and None.
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
    """A GPU is numbered otherwise in each process; its UUID is the same in all."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text("utf-8"))
        return f"process {found['pid']}" + (f" ({found['doing']})" if found["doing"] else "")
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
