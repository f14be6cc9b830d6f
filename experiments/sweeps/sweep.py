"""A sweep as it is on disk: `sweep.json` in its folder, written when it begins, and the folders of its jobs.

Nothing here depends on which launcher ran the jobs, on which machine, or on whether all have ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.common.task import JOB, read_record
from experiments.sweeps.job_names import names, parsed
from specdec.errors import InputError
from specdec.files.checked import read_json, read_yaml
from specdec.files.claims import lives
from specdec.files.durable import write_json, write_text
from specdec.runs.log import Label
from specdec.runs.read import Run, folders_below

SWEEP, FAILED = "sweep.json", "failed.jsonl"
FINISHED, RUNNING, WAITING = "finished", "running", "not started"
WITHOUT_A_WORD = "its process ended without a word: killed, out of memory, or its machine went down"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        number: number of the job.
        overrides: its options.
        folder: its folder, None if it has not started.
        status: finished, running, failed, interrupted, killed or not started.
        error: the reason in one line, if it ended early.
        value: its objective.
    """

    number: int
    overrides: tuple[str, ...]
    folder: Path | None
    status: str
    error: str = ""
    value: float | None = None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The job's figures, empty unless it finished."""
        try:
            found = read_json(self.folder / "summary.json") if self.folder else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and self.status == FINISHED else {}


@dataclass(frozen=True)
class Sweep:
    """The jobs of one sweep, by number."""

    folder: Path
    jobs: tuple[Job, ...]

    @cached_property
    def names(self) -> dict[int, str]:
        return names({job.number: job.overrides for job in self.jobs})

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.status != FINISHED]

    @property
    def failed(self) -> list[Job]:
        """The jobs that ended early."""
        return [job for job in self.unfinished if job.status not in (RUNNING, WAITING)]

    def write_failed(self) -> None:
        """Write `failed.jsonl` with one line per job that ended early, or remove it if there is none."""
        file = self.folder / FAILED
        lines = [
            {
                "job": job.number,
                "name": self.names[job.number],
                "overrides": job.overrides,
                "status": job.status,
                "error": job.error,
            }
            for job in self.failed
        ]
        if lines:
            write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        else:
            file.unlink(missing_ok=True)


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP).exists() or (folder / "multirun.yaml").exists()


def begin(folder: Path, overrides: Sequence[str], jobs: Sequence[Sequence[str]] | None, resume: bool) -> None:
    """Claim a folder for a sweep, or resume the sweep in it.

    Args:
        folder: the folder of the sweep, `hydra.sweep.dir`.
        overrides: overrides of the whole sweep.
        jobs: overrides of each job; None if a search chooses them during the sweep.
        resume: whether the folder must already contain this sweep.

    Raises:
        InputError: without `resume`, the folder contains a sweep; with it, the folder contains none or another.
    """
    file = folder / SWEEP
    if resume:
        before = _head(folder)
        if not before:
            raise InputError(
                "sweep.resume", expected="hydra.sweep.dir=FOLDER of a sweep that was begun", got=repr(str(folder)),
                fix="name its folder, or leave sweep.resume out",
            )  # fmt: skip
        was, now = (_of_the_jobs(parsed(lines)) for lines in (before.get("overrides", []), overrides))
        if differing := [key for key in dict.fromkeys((*was, *now)) if was.get(key) != now.get(key)]:
            changes = ", ".join(f"{key} (was {was.get(key)}, is {now.get(key)})" for key in differing)
            raise InputError(
                str(folder), expected="the overrides its sweep was begun with", got=f"other values of {changes}",
                fix="restore them, or begin another sweep without sweep.resume",
            )  # fmt: skip
        return
    if file.exists() or any(_started(folder)):
        raise InputError(
            "hydra.sweep.dir", expected="a folder without a sweep", got=repr(str(folder)),
            fix="choose another, or run what is missing there with sweep.resume=true",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {"command": sys.orig_argv, "overrides": list(overrides), "jobs": jobs})


def undo(folder: Path) -> None:
    """Release the folder of a sweep if none of its jobs began, so that a corrected command can use it."""
    if not any(_started(folder)):
        (folder / SWEEP).unlink(missing_ok=True)


def read(folder: Path) -> Sweep:
    """Read the state of a sweep so far."""
    planned = dict(enumerate(_head(folder).get("jobs") or []))
    found = {job.number: job for job in _started(folder)}
    waiting = {n: Job(n, tuple(overrides), None, WAITING, WAITING) for n, overrides in planned.items()}
    return Sweep(folder, tuple(job for _, job in sorted({**waiting, **found}.items())))


def label(names_of_parts: Mapping[str, str]) -> Label:
    """Return the name and group of this process's run for trackers.

    A job of a sweep has its own name, and the group of its sweep. Any other run is named by its parts. A job of a
    search is named by its overrides that are not those of the search, because the other jobs are not known yet.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return Label(f"{names_of_parts['drafter']} on {names_of_parts['target']}")
    hydra = HydraConfig.get()
    folder, number = Path(hydra.sweep.dir).absolute(), int(hydra.job.num)
    head = _head(folder)
    jobs = dict(enumerate(head.get("jobs") or [])) or {-1: head.get("overrides", []), number: hydra.overrides.task}
    return Label(names(jobs)[number], "/".join(folder.parts[-2:]))


def _started(folder: Path) -> Iterator[Job]:
    inside = [f for f, files in folders_below(folder) if JOB in files or (f / ".hydra" / "overrides.yaml").exists()]
    for place, job in enumerate(inside):
        record = read_record(job) or _older_record(job, place)
        status, error = record["status"], record.get("error", "")
        if status == RUNNING and not lives(job):
            status, error = "killed", WITHOUT_A_WORD
        error = "" if status == FINISHED else error or status
        overrides = tuple(map(str, record["overrides"]))
        yield Job(record["number"], overrides, job, status, error, record.get("value"))


def _older_record(folder: Path, place: int) -> dict[str, Any]:
    """Return the record of a job of an older version, which wrote none, from the files of its run."""
    run = Run(folder)
    run.look()
    try:
        overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
    except (OSError, ValueError):
        overrides = []
    number = int(folder.name) if folder.name.isdigit() else place
    return {"number": number, "overrides": overrides or [], "status": run.status}


def _head(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / SWEEP)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_the_jobs(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options without those of running the sweep."""
    return {k: v for k, v in options.items() if not k.lstrip("+").startswith("sweep.") and k != "exclusive"}
