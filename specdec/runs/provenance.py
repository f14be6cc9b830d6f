"""Describe where a run comes from: command, commit, versions, machine and process."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec.model.runtime.build import loaded

KEEP_DIFF = "SPECDEC_PROVENANCE_DIFF"  # set by `provenance.diff=true`, also for the processes of a sweep
DISTRIBUTION = "specdec-lab"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "accelerate", "hydra-core", "wandb", "numpy", "flash-attn")


def provenance() -> dict[str, Any]:
    """Return the command, commit, uncommitted changes, versions, machine and process of this run."""
    return {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": _version(DISTRIBUTION),
        "commit": _git("rev-parse", "HEAD"),
        "changes": changes(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": machine(),
        "process": this_process(),
        "threads": torch.get_num_threads(),
        "kernels": dict(loaded),
    }


def changes() -> dict[str, Any] | None:
    """Return the hash of the uncommitted diff and the names of the changed files; None without changes.

    The diff itself may contain secrets, so it is included only with `provenance.diff=true`.
    """
    diff = _git("diff", "HEAD")
    if not diff:
        return None
    found = {
        "sha256": hashlib.sha256(diff.encode("utf-8", "surrogateescape")).hexdigest(),
        "files": (_git("diff", "HEAD", "--name-only") or "").splitlines(),
    }
    return {**found, "diff": diff} if os.environ.get(KEEP_DIFF) == "1" else found


def this_process() -> dict[str, Any]:
    """Return host and pid. Whether the run is still running is read from the lock on its folder, not from the pid."""
    return {"host": platform.node(), "pid": os.getpid()}


def machine() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "system": platform.platform(),
    }


def _git(*args: str) -> str | None:
    """Return the output of a git command in this repository; None if this is an installed copy or git fails."""
    if not _is_checkout(ROOT):
        return None
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _is_checkout(folder: Path) -> bool:
    """Return whether a folder is the top of this project's repository: one in which this file is tracked."""
    file = str(Path(__file__).resolve().relative_to(folder))
    try:
        for command in (["rev-parse", "--show-prefix"], ["ls-files", "--error-unmatch", "--", file, "pyproject.toml"]):
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
            if command[0] == "rev-parse" and done.stdout.strip():
                return False  # below the top of another repository
        return f'name = "{DISTRIBUTION}"' in (folder / "pyproject.toml").read_text("utf-8")
    except (OSError, subprocess.CalledProcessError):
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
