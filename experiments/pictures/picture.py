"""A picture, and the table it was drawn from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from experiments.common.escape import csv_cell

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table: columns with their units, and rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([csv_cell(cell) for cell in row] for row in [self.columns, *self.rows])
        return out.getvalue()

    def shown(self) -> list[list[str]]:
        """Return the rows as readable text."""
        return [[shown(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure with its table.

    Args:
        name: id of the picture, and name of its file.
        title: its title.
        says: one sentence on how to read it.
        figure: the figure.
        table: the table it was drawn from.
        wide: whether it takes the whole width of a page.
    """

    name: str
    title: str
    says: str
    figure: go.Figure
    table: Table
    wide: bool = False

    def json(self) -> dict[str, Any]:
        """Return the figure as Plotly's JSON, with numbers in plain lists."""
        drawn: dict[str, Any] = json.loads(self.figure.to_json())
        return drawn


@dataclass(frozen=True)
class Tile:
    """One figure of the headline."""

    label: str
    value: str
    note: str = ""


def shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return str(cell)


def bars(interval: Sequence[Sequence[float] | None], values: Sequence[float]) -> dict[str, Any] | None:
    """Return error bars from 95 % intervals, or None if there are no intervals."""
    if not any(interval):
        return None
    both = list(zip([i or (v, v) for i, v in zip(interval, values, strict=True)], values, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1.4,
        "width": 4,
        "color": "#8A919C",
        "array": [high - value for (_, high), value in both],
        "arrayminus": [value - low for (low, _), value in both],
    }
