"""Write the files of a run. The JSON files are the record; a tracker (such as W&B) receives a copy.

steps.jsonl        one record per step and row
generations.jsonl  one record per prompt, turn and repeat: the text, and the time of each method
train.jsonl        figures of a training run, one line per report (instead of steps and generations)
summary.json       final figures, written last
report.html        charts on one page, drawn by `experiments.report` from the files above
provenance.json    command, commit, uncommitted changes, versions, machine, and how the run ended
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from filelock import BaseFileLock

from specdec.files.checked import parse_json, read_bounded
from specdec.files.claims import HYDRA, claim
from specdec.files.durable import Lines, write_bytes, write_json
from specdec.metrics import StepRecord
from specdec.runs.provenance import provenance
from specdec.runs.summary import Summary

CARD = "README.md"  # model card in a trained drafter's folder; model hubs show it


class Label(NamedTuple):
    """Name of a run in a tracker. `group` is the sweep that the run is a job of, if any."""

    name: str
    group: str | None = None


Artifacts = Mapping[str, Path]  # files or folders by kind ("report", "drafter")


@runtime_checkable
class Tracker(Protocol):
    """Copy a run's records to another place, such as a server.

    If a method raises, `RunLog` and `TrainLog` warn and continue without the tracker.
    """

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None: ...
    def steps(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def training(self, record: Mapping[str, Any]) -> None: ...
    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None: ...


class NoTracker:
    """Tracker that does nothing."""

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None: ...
    def steps(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def training(self, record: Mapping[str, Any]) -> None: ...
    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None: ...


class StepFigures:
    """Turns step records into figures for a tracker's charts; tokens/s is that of all steps so far."""

    def __init__(self) -> None:
        self._tokens, self._ms = 0, 0.0

    def of(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the figures of `record`, a line of `steps.jsonl`, by their names in charts."""
        self._tokens += record["emitted"]
        self._ms += sum(record["ms"].values()) / record["live"]
        return {
            **{f"step/{name}": record[name] for name in ("accepted", "offered", "emitted", "nodes")},
            "step/tokens_per_second": 1e3 * self._tokens / self._ms,
            **{f"step/{phase}_ms": ms for phase, ms in record["ms"].items()},
        }


class WandbTracker:
    """Tracker for Weights & Biases; offline unless `mode` or the environment variable WANDB_MODE is set."""

    def __init__(self, project: str = "specdec", mode: str | None = None, group: str | None = None) -> None:
        mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self._options: dict[str, Any] = {"project": project, "group": group, "mode": mode}
        self._run: Any = None
        self._figures = StepFigures()

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # for wandb's service process, which ignores `settings`
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        options = {**self._options, "group": self._options["group"] or label.group, "name": label.name}
        self._run = wandb.init(dir=folder, config=dict(config), settings=settings, **options)

    def steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self._run.log(self._figures.of(record))

    def training(self, record: Mapping[str, Any]) -> None:
        self._run.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        """Log the summary, its charts and the artifacts. docs/wandb-board.md describes a board for them."""
        import wandb

        scalars: dict[str, Any] = {}
        read, _ = Summary.read(summary)
        for name, (columns, rows) in _tables(read).items():
            table = wandb.Table(columns=list(columns), data=rows)
            label, value = columns[:2]
            self._run.log({name: wandb.plot.bar(table, label, value, name.replace("_", " "))})
            if name != "by_category":
                scalars |= {f"{name}/{row[0]}": row[1] for row in rows}
        if counts := read.emitted_histogram:
            histogram = np.array(counts), np.arange(len(counts) + 1) + 0.5
            self._run.log({"emitted_tokens_per_step": wandb.Histogram(np_histogram=histogram)})
        for kind, path in artifacts.items():
            card = path / CARD
            described = card.read_text("utf-8") if card.is_file() else None
            artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind, description=described)
            (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
            self._run.log_artifact(artifact)
        self._run.summary.update({**summary, **scalars})
        self._run.finish()


def _tables(summary: Summary) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return the tables to chart, as (columns, rows) by name.

    The first column labels the bars, the second is their length.
    """
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {
        "acceptance_at_depth": (
            ["depth", "acceptance"],
            [list(row) for row in enumerate(summary.acceptance_at_depth, 1)],
        ),
        "phase_ms": (["phase", "ms per step"], [list(row) for row in summary.phase_ms.items()]),
        "by_category": (
            ["category", "speedup", "tokens per step", "acceptance rate", "tokens/s"],
            [
                [name, c.speedup, c.tokens_per_step, c.acceptance_rate, c.tokens_per_second]
                for name, c in summary.by_category.items()
            ],
        ),
    }
    return {name: table for name, table in tables.items() if table[1]}


class Mirror:
    """Call a tracker's methods by name; after its first exception, warn and stop calling it."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker: Tracker | None = tracker

    def __call__(self, call: str, *args: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, call)(*args)
        except Exception as error:  # a tracker must never kill a run
            self.tracker = None
            warnings.warn(f"the tracker failed and is switched off, the JSON files go on: {error!r}", stacklevel=3)


class RunLog:
    """Write the files of one run, and copy them to its tracker.

    The folder is locked until the run ends; an earlier run in it is moved aside (`claims.py`).

    Args:
        folder: the run's folder.
        tracker: receives a copy of all records.
        config: the run's configuration; `names` in it goes into provenance.json.
        label: name of the run in the tracker, by default the folder's name.

    Raises:
        InputError: another run in the folder is still running, or the folder cannot be written.
    """

    def __init__(self, folder: Path, tracker: Tracker, config: Mapping[str, Any], label: Label | None = None) -> None:
        self.folder = folder
        self._mirror = Mirror(tracker)
        self.steps_written = 0
        self._lock = claim(folder, keep=HYDRA)
        self._steps = Lines(folder / "steps.jsonl", fresh=True)
        self._generations = Lines(folder / "generations.jsonl", fresh=True)
        self._provenance = {**provenance(), "names": config.get("names", {}), "status": "running"}
        with _stopped_at_once(self.stop):
            write_json(folder / "provenance.json", self._provenance)
            self._mirror("start", folder, config, label or Label(folder.name))

    def steps(self, records: Sequence[StepRecord], context: Sequence[Mapping[str, Any]]) -> None:
        """Append step records; `context` holds one dict per row of the batch (prompt, category, turn, repeat)."""
        lines = [{**context[record.row], **asdict(record)} for record in records]
        self._steps.append(lines)
        self.steps_written += len(lines)
        self._mirror("steps", lines)

    def generations(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._generations.append(records)

    def finish(self, summary: Mapping[str, Any], report: Callable[[Path], Path] | None = None) -> None:
        """Write the summary, which completes the run.

        Args:
            summary: the final figures.
            report: draws the report of the folder it is given and returns the report's file. It is called after all
                other files are written; if it raises, the run is complete without a report.
        """
        for lines in (self._steps, self._generations):
            lines.sync()
        write_json(self.folder / "summary.json", summary)
        self._end("finished")
        artifacts: dict[str, Path] = {}
        if report is not None:
            try:
                artifacts["report"] = report(self.folder)
            except Exception as error:
                warnings.warn(f"the report could not be drawn, the JSON files are whole: {error!r}", stacklevel=2)
        self._mirror("finish", summary, artifacts)

    def stop(self, status: str) -> None:
        """End the run early. The files stay, and provenance.json records `status` if it can be written."""
        _if_it_can_be(lambda: self._end(status))
        self._mirror("finish", {"status": status}, {})

    def _end(self, status: str) -> None:
        ended = {"status": status, "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "steps": self.steps_written}
        with releasing(self._lock, self._steps, self._generations):
            write_json(self.folder / "provenance.json", {**self._provenance, **ended})


class TrainLog:
    """Write the files of a training run, and copy them to its tracker.

    A resumed run appends to the same files. Reports of steps after `step` are dropped first, because these steps are
    run again. `provenance` holds the content of provenance.json.

    Args:
        folder: the run's folder.
        tracker: receives a copy of all reports.
        config: the run's configuration; `names` in it goes into provenance.json.
        step: number of steps that are done already; 0 for a new run.
        label: name of the run in the tracker, by default the folder's name.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, tracker: Tracker, config: Mapping[str, Any], step: int = 0, label: Label | None = None
    ) -> None:
        self.folder, self._mirror = folder, Mirror(tracker)
        self._lock = claim(folder, resume=True)
        file = folder / "train.jsonl"
        write_bytes(file, b"".join(_reports(file, step)) if step else b"")
        self._lines = Lines(file)
        self.provenance = {**provenance(), "names": config.get("names", {}), "resumed_at": step}
        with _stopped_at_once(self.stop):
            write_json(folder / "provenance.json", {**self.provenance, "status": "running"})
            self._mirror("start", folder, config, label or Label(folder.name))

    def report(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append a line of figures."""
        record = {"step": step, **figures}
        self._lines.append([record])
        self._mirror("training", record)

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts | None = None) -> None:
        """Write the summary, which completes the run; `artifacts` (the trained drafter's folder) go to the tracker."""
        self._lines.sync()
        write_json(self.folder / "summary.json", summary)
        self._end("finished")
        self._mirror("finish", summary, artifacts or {})

    def stop(self, status: str) -> None:
        """End the run early; it can be resumed. provenance.json records `status` if it can be written."""
        _if_it_can_be(lambda: self._end(status))
        self._mirror("finish", {"status": status}, {})

    def _end(self, status: str) -> None:
        ended = {"status": status, "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with releasing(self._lock, self._lines):
            write_json(self.folder / "provenance.json", {**self.provenance, **ended})


def _reports(file: Path, step: int) -> Iterator[bytes]:
    """Yield the lines of earlier reports up to `step`; other lines are left out."""
    for line in read_bounded(file).split(b"\n")[:-1] if file.exists() else ():
        with suppress(ValueError):
            report = parse_json(line)
            if isinstance(report, dict) and type(report.get("step")) is int and report["step"] <= step:
                yield line + b"\n"


@contextmanager
def releasing(lock: BaseFileLock, *files: Lines) -> Iterator[None]:
    """Close a run's files, then release the lock on its folder, even if an exception is raised."""
    try:
        with ExitStack() as stack:
            for file in files:
                stack.callback(file.close)
            yield
    finally:
        lock.release()


@contextmanager
def _stopped_at_once(stop: Callable[[str], None]) -> Iterator[None]:
    """Record an interruption during `__init__`, before the caller has the log; a tracker may be slow to start."""
    try:
        yield
    except KeyboardInterrupt:
        stop("interrupted")
        raise


def _if_it_can_be(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        warnings.warn(f"how the run ended could not be written: {error}", stacklevel=3)
