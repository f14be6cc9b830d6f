"""Write one self-contained HTML page of runs: it needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from experiments.pictures import one_run, several_runs, training
from experiments.pictures.picture import Picture, Table, Tile
from experiments.pictures.reader import reader
from experiments.pictures.style import CONFIG
from specdec.files.durable import write_text
from specdec.notes import counted
from specdec.runs.read import Run

REPORT = "report.html"
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Contents:
    """The contents of a page or of the dashboard for some runs.

    Args:
        title: title of the page.
        head: lines below the title.
        notes: warnings.
        made: pairs (command, commit) of the runs.
        pictures: the pictures.
        tiles: the figures to read first, for a single run.
        table: the table of the runs, for a comparison.
    """

    title: str
    head: list[str]
    notes: list[str]
    made: list[tuple[str, str]]
    pictures: list[Picture]
    tiles: list[Tile] = field(default_factory=list)
    table: Table | None = None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Contents:
        """Return the figures of one run, or the comparison of several."""
        if len(runs) == 1:
            return cls._one(runs[0])
        labelled = several_runs.labels(runs)
        measured = {label: run for label, run in labelled.items() if not run.trains}
        notes = several_runs.warnings(labelled) + [
            f"{label}: {n}" for label, run in labelled.items() for n in run.notes
        ]
        return cls(
            title=f"{len(runs)} runs",
            head=list(dict.fromkeys(_where(run) for run in runs)),
            notes=notes,
            made=list(dict.fromkeys((run.command, run.commit) for run in runs)),
            pictures=several_runs.pictures(measured)
            + training.pictures({n: r for n, r in labelled.items() if r.trains}),
            table=several_runs.table(measured) if measured else None,
        )

    @classmethod
    def _one(cls, run: Run) -> Contents:
        names = run.names
        return cls(
            title=f"{'training ' if run.trains else ''}{names['drafter']} on {names['target']}",
            head=[", ".join(filter(None, (_where(run), run.provenance.get("started"))))],
            notes=run.notes,
            made=[(run.command, run.commit)],
            pictures=training.pictures({str(run.folder): run}) if run.trains else one_run.pictures(run),
            tiles=[] if run.trains else one_run.headline(run),
        )


def page(runs: Sequence[Run]) -> str:
    """Return the report of one run, or the comparison of several, as HTML."""
    contents = Contents.of(runs)
    return _render(
        **{name: getattr(contents, name) for name in Contents.__dataclass_fields__},
        reader=reader(runs[0]) if len(runs) == 1 else None,
        figures={"figures": {picture.name: picture.json() for picture in contents.pictures}, "config": CONFIG},
        scripts=[get_plotlyjs(), _asset("report.js"), _asset("reader.js")],
        framed=False,
    )


def write_page(runs: Sequence[Run], file: Path) -> Path:
    """Write the page atomically. Returns the file."""
    for run in runs:
        run.refresh()
    write_text(file, page(runs))
    return file


def reader_page(run: Run) -> str:
    """Return a page with only the reader, for a frame of the dashboard."""
    return _render(
        title=run.folder.name,
        framed=True,
        head=[],
        notes=[],
        made=[],
        pictures=[],
        tiles=[],
        table=None,
        reader=reader(run),
        figures={},
        scripts=[_asset("reader.js")],
    )


def render(template: str, assets: Sequence[str], **values: object) -> str:
    """Return the page of a template that may run only these scripts."""
    return _render([_asset(name) for name in assets], template, **values)


def _render(scripts: Sequence[str], template: str = "page.html", **values: object) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    policy = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return _template(template).render(scripts=scripts, policy=policy, style=_asset("style.css"), **values)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")


@cache
def _template(name: str):  # type: ignore[no-untyped-def]
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csv"] = csv_link
    return environment.get_template(name)


def csv_link(table: Table) -> str:
    """Return a link that contains the table as CSV, so that no file is needed."""
    return "data:text/csv;charset=utf-8," + quote(table.csv())


def _where(run: Run) -> str:
    """Return the hardware and settings that the run used."""
    f, machine = run.figures, run.provenance.get("machine") or {}
    parts = [
        ", ".join(machine.get("gpu") or []) or machine.get("cpu"),
        None if f.threads is None else counted(f.threads, "thread"),
        f.dtype,
        None if f.kernel is None else f"kernel {f.kernel}",
        None if f.temperature is None else f"temperature {f.temperature}",
        None if f.batch_size is None else f"batch {f.batch_size}",
        None if f.prompts is None else counted(f.prompts, "prompt"),
    ]
    return ", ".join(str(part) for part in parts if part)
