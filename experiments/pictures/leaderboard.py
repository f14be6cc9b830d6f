"""Make a leaderboard: per target, drafter, machine and prompts the newest finished run, with its command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.pictures.page import render
from experiments.pictures.picture import Table
from specdec.files.durable import write_text
from specdec.notes import counted
from specdec.runs.read import Run

LEADERBOARD = "leaderboard.html"
FILTERED = ("target", "drafter", "machine", "prompts")
COLUMNS = (
    *FILTERED,
    "speedup",
    "95 % from",
    "to",
    "τ (tokens per step)",
    "acceptance rate",
    "tokens/s",
    "texts",
    "rule",
    "temperature",
    "batch",
    "dtype",
    "runs",
    "started",
    "commit",
    "command",
)


class Entrant(NamedTuple):
    """The key of a row. Of several runs with the same key only the newest is shown."""

    target: str
    drafter: str
    machine: str
    prompts: str
    temperature: str
    batch: str
    dtype: str
    rule: str


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboard.

    Args:
        table: the rows, newest first.
        left_out: number of runs that measured nothing or did not finish.
    """

    table: Table
    left_out: int

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Leaderboard:
        """Return the leaderboard of the newest run of every entrant."""
        entrants: dict[Entrant, list[Run]] = {}
        for run in runs:
            run.look()
            if run.status == "finished" and run.head.speedup is not None:
                entrants.setdefault(_entrant(run), []).append(run)
        newest = {key: max(of_key, key=_started) for key, of_key in entrants.items()}
        order = sorted(newest, key=lambda key: _started(newest[key]), reverse=True)
        rows = [_row(key, newest[key], len(entrants[key])) for key in order]
        return cls(Table(COLUMNS, rows), len(runs) - sum(map(len, entrants.values())))


def leaderboard_page(board: Leaderboard) -> str:
    """Return one self-contained page, with a filter for each of the first columns."""
    choices = {name: sorted({str(row[place]) for row in board.table.rows}) for place, name in enumerate(FILTERED)}
    return render("leaderboard.html", ["leaderboard.js"], title="Leaderboard", board=board, choices=choices)


def write_leaderboard(runs: Sequence[Run], file: Path) -> Leaderboard:
    """Write the page atomically. Returns the leaderboard."""
    board = Leaderboard.of(runs)
    write_text(file, leaderboard_page(board))
    return board


def _entrant(run: Run) -> Entrant:
    f, tree = run.head, run.head.tree
    drafter = run.names["drafter"] if tree in {None, "as_drafted"} else f"{run.names['drafter']}, {tree} trees"
    loss = "lossless" if f.lossless else "lossy"
    return Entrant(
        run.names["target"],
        drafter,
        _machine(run),
        _prompts(run),
        "" if f.temperature is None else str(f.temperature),
        "" if f.batch_size is None else str(f.batch_size),
        f.dtype or "",
        f"{f.acceptance or 'unknown'} ({loss})",
    )


def _machine(run: Run) -> str:
    machine = run.provenance.get("machine") or {}
    name = ", ".join(machine.get("gpu") or []) or str(machine.get("cpu", "unknown"))
    return name if run.head.threads is None else f"{name}, {counted(run.head.threads, 'thread')}"


def _prompts(run: Run) -> str:
    """Return the name of the prompt set (for a file its name) and the number of prompts."""
    options = run.options
    source = options.get("prompts.path") or options.get("prompts.name")
    made_by = str(options.get("prompts._target_", "unknown"))
    name = Path(str(source)).name if source else made_by.rpartition(".")[2]
    prompts, tokens = (counted(run.head.prompts, "prompt"), counted(run.head.max_new_tokens, "token"))
    return f"{name}, {prompts}, {tokens}"


def _started(run: Run) -> str:
    return str(run.provenance.get("started", ""))


def _row(key: Entrant, run: Run, runs: int) -> list[Any]:
    f, divergence = run.head, run.head.divergence
    same = "sampled" if divergence is None else f"{divergence.identical}/{divergence.total} identical"
    return [
        *key[: len(FILTERED)],
        f.speedup,
        *(f.speedup_ci95 or (None, None)),
        f.tokens_per_step,
        f.acceptance_rate,
        f.tokens_per_second,
        same,
        key.rule,
        key.temperature,
        key.batch,
        key.dtype,
        runs,
        _started(run)[:19].replace("T", " "),
        run.commit,
        run.command,
    ]
