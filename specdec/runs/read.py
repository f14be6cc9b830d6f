"""Read runs that `log.py` wrote.

A run may still be growing, have crashed, or come from an older version. Complete records are used; `Run.notes` lists
what is missing or broken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from specdec.errors import InputError
from specdec.files.checked import MOST_BYTES, open_below, parse_json, parse_yaml
from specdec.files.claims import PREVIOUS, lives
from specdec.metrics import StepRecord
from specdec.notes import counted
from specdec.runs.records import is_generation, is_step, sound_provenance
from specdec.runs.summary import Figures, Summary, completed

STEPS, GENERATIONS, TRAINING = "steps.jsonl", "generations.jsonl", "train.jsonl"
HEAD = ("summary.json", "provenance.json")
CONFIG = ".hydra/config.yaml"
FOREIGN = ("wandb", "tracked", "checkpoints")  # folders of a run that hold no runs


class TextKey(NamedTuple):
    """Key of one text of a run: prompt id, category, and indices of turn and repeat."""

    prompt: str
    category: str
    turn: int
    repeat: int


class JsonLines:
    """Read a JSON lines file that may still grow; each `read` returns the objects of the new complete lines."""

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, 0
        self.broken = 0  # whole lines that hold no JSON object
        self._refused = False
        self.rest = b""  # bytes after the last whole line

    def read(self) -> list[dict[str, Any]]:
        try:
            with open_below(self._path.parent, self._path.name) as file:
                file.seek(self._place)
                *lines, rest = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError:
            self._refused = True  # a link, a folder, or no permission
            return []
        self._place += sum(len(line) + 1 for line in lines)
        found = [_object(line) for line in lines]
        if rest and (whole := _object(rest)) is not None:  # the last line is complete but for its newline
            self._place, rest = self._place + len(rest), b""
            found.append(whole)
        self.rest = rest
        records = [record for record in found if record is not None]
        self.broken += sum(bool(line.strip()) for line in lines) - len(records) + (len(found) > len(lines))
        return records

    @property
    def note(self) -> str | None:
        """Message about what could not be read, or None."""
        refused = f"{self._path.name} cannot be read" if self._refused else None
        cut = f"the last line of {self._path.name} is cut off" if self.rest else None
        holds = "holds" if self.broken == 1 else "hold"
        bad = f"{counted(self.broken, 'line')} of {self._path.name} {holds} no record" if self.broken else None
        return "; ".join(filter(None, (refused, cut, bad))) or None


class Run:
    """One run folder. `look` reads summary and provenance; `refresh` also reads new steps, texts and reports.

    folder        the folder
    texts         step records of each text, in order
    generations   one dict per text
    training      reports of a training run
    head          content of summary.json, as a `Summary`
    provenance    content of provenance.json
    notes         what is missing or broken
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        self._files = {name: JsonLines(self.folder / name) for name in (STEPS, GENERATIONS, TRAINING)}
        self._seen: tuple[int, ...] = ()
        self._seen_head: tuple[int, ...] = ()
        self.texts: dict[TextKey, list[StepRecord]] = {}
        self.generations: list[dict[str, Any]] = []
        self.training: list[dict[str, Any]] = []
        self._unreadable: list[str] = []
        self.head = Summary()
        self.provenance: dict[str, Any] = {}

    def look(self) -> None:
        """Read summary and provenance if their files changed."""
        seen = tuple(_stamp(self.folder / name) for name in HEAD)
        if seen != self._seen_head:
            self._seen_head, self._unreadable = seen, []
            summary, provenance = HEAD
            self.head, wrong = Summary.read(self._json(summary))
            self._note_wrong(summary, wrong)
            self.provenance, wrong = sound_provenance(self._json(provenance))
            self._note_wrong(provenance, wrong)
            self.__dict__.pop("figures", None)

    def _note_wrong(self, file: str, names: Sequence[str]) -> None:
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            self._unreadable.append(f"{file}: left out {shown}, which cannot be what a run wrote")

    def refresh(self) -> bool:
        """Read what was added since the last call; return whether anything changed."""
        sizes = tuple(_stamp(self.folder / name) for name in self._files)
        head = self._seen_head
        self.look()
        if sizes == self._seen:
            return head != self._seen_head
        if any(now < before for now, before in zip(sizes, self._seen, strict=False)):
            self._start()  # files that became shorter: another run began in this folder
            self.look()
        self._seen = sizes
        self.__dict__.pop("figures", None)
        for line in self._files[STEPS].read():
            self._take(line)
        for line in self._files[GENERATIONS].read():
            self._take_generation(line)
        self.training += self._files[TRAINING].read()
        return True

    def _take_generation(self, line: dict[str, Any]) -> None:
        if is_generation(line):
            self.generations.append(line)
        else:
            self._files[GENERATIONS].broken += 1

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if not is_step(line):
                raise TypeError("no numbers of a step")
            record = StepRecord(**{name: line[name] for name in _STEP_FIELDS if name in line})
            key = TextKey(str(line["prompt"]), str(line["category"]), line["turn"], line["repeat"])
        except (KeyError, TypeError):
            self._files[STEPS].broken += 1
            return
        self.texts.setdefault(key, []).append(record)

    @property
    def files(self) -> list[Path]:
        """Paths of all files that are read, whether they exist or not."""
        return [self.folder / name for name in (*self._files, *HEAD, CONFIG)]

    @property
    def steps(self) -> list[StepRecord]:
        return [record for records in self.texts.values() for record in records]

    @cached_property
    def figures(self) -> Summary:
        """Content of `summary.json`, completed from the step records.

        Figures are missing there if the run is under way, crashed, or comes from an older version. A ratio whose
        denominator is 0 is None.
        """
        if not self.texts:
            return self.head
        of_category: dict[str, list[StepRecord]] = {}
        for key, records in self.texts.items():
            of_category.setdefault(key.category, []).extend(records)
        known = self.head.by_category
        by_category = {name: completed(known.get(name, Figures()), r) for name, r in of_category.items()}
        return replace(completed(self.head, self.steps), by_category=by_category)

    @property
    def stamp(self) -> list[int]:
        """Change stamp of the data that was read: it differs whenever a file has changed between two reads."""
        return [*self._seen, *self._seen_head]

    @property
    def trains(self) -> bool:
        return (self.folder / TRAINING).exists()

    @property
    def status(self) -> str:
        """One of: running, finished, interrupted, failed, killed, unknown.

        "killed" means that the status in provenance.json is "running" but no process holds the folder's lock;
        "unknown" that there is no provenance.
        """
        status = str(self.provenance.get("status", "unknown"))
        return "killed" if status == "running" and not lives(self.folder) else status

    @property
    def names(self) -> dict[str, str]:
        """Names of the run's target and drafter, "unknown" if not recorded."""
        known = {"target": self.head.target, "drafter": self.head.drafter}
        recorded = self.provenance.get("names", {})
        return {group: str(name or recorded.get(group, "unknown"))[:200] for group, name in known.items()}

    @cached_property
    def options(self) -> dict[str, Any]:
        """The run's configuration by dotted names; empty if it cannot be read."""
        try:
            with open_below(self.folder, CONFIG) as file:
                config = parse_yaml(file.read(MOST_BYTES))
        except (OSError, ValueError):
            return {}
        return _flat(config) if isinstance(config, dict) else {}

    @property
    def command(self) -> str:
        """Command of the run, with "python" instead of the interpreter's path."""
        words = [str(word) for word in self.provenance.get("command", [])]
        return " ".join(["python", *words[1:]]) if words else "unknown"

    @property
    def commit(self) -> str:
        commit = self.provenance.get("commit")
        changes = (
            " with uncommitted changes" if self.provenance.get("changes") or self.provenance.get("dirty_diff") else ""
        )
        return f"{commit[:12]}{changes}" if isinstance(commit, str) else "unknown"

    @property
    def notes(self) -> list[str]:
        """Warnings about the figures: broken files, an unfinished run, a disturbed machine, missing records."""
        notes = [*self._unreadable, *(note for file in self._files.values() if (note := file.note))]
        if self.status == "running":
            notes.append("the run is under way: figures are those of its steps so far")
        elif self.status in ("interrupted", "failed", "killed"):
            notes.append(f"the run was {self.status}: figures are those of the steps it made")
        quiet = self.head.quiet
        if quiet and quiet.disturbed:
            rounds = counted(quiet.rounds, "round")
            notes.append(f"the machine was disturbed in {quiet.disturbed} of {rounds}: {quiet.worst}")
        if self.steps and not any(record.parents for record in self.steps):
            notes.append("the run is of an older version that did not record its trees")
        if self.generations and not all("pieces" in generation for generation in self.generations):
            notes.append("the run is of an older version that did not record the text of each token")
        return notes

    def _json(self, name: str) -> dict[str, Any]:
        try:
            with open_below(self.folder, name) as file:
                found = _object(file.read(MOST_BYTES))
        except FileNotFoundError:
            return {}
        except OSError:
            found = None
        if found is None:
            self._unreadable.append(f"{name} cannot be read")
        return found or {}


_STEP_FIELDS = tuple(StepRecord.__dataclass_fields__)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in and below folders, each once, in the order of the folders; sorted by path within each.

    Raises:
        InputError: a folder does not exist or holds no run.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError("folder", expected="a folder with runs", got=repr(str(folder)), fix="check the path")
        inside = run_folders(folder)
        if not inside:
            raise InputError(
                "folder", expected=f"a folder with runs ({STEPS} or {TRAINING})", got=f"none in {str(folder)!r}",
                fix="make one with python -m experiments.bench",
            )  # fmt: skip
        found += inside
    return [Run(folder) for folder in dict.fromkeys(found)]


def run_folders(root: Path) -> list[Path]:
    """Return `root` and the folders below it that hold a run.

    Links are not followed. Runs that were moved aside (`claims.py`) are left out.
    """
    return [folder for folder, files in folders_below(root) if STEPS in files or TRAINING in files]


def folders_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield `root` and the folders below it that may hold a run, each with the names of its files."""
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(n for n in inside if not n.startswith((".", PREVIOUS)) and n not in FOREIGN)
        yield Path(folder), files


def _stamp(path: Path) -> int:
    """Return a change stamp: the size of an append-only (.jsonl) file, the mtime in ns of others, 0 if missing."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_size if path.suffix == ".jsonl" else found.st_mtime_ns


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
