"""Turn the tables of pictures into text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from experiments.common.tables import stdout
from experiments.pictures.picture import Table


def rich(table: Table, title: str) -> RichTable:
    """Return the table for the terminal, transposed if it then fits better, because names are long."""
    rows = [list(table.columns), *table.shown()]
    upright, turned = _rich(rows, title), _rich(list(zip(*rows, strict=True)), title)
    room = stdout.options.update(width=10_000)
    width = {made: stdout.measure(made, options=room).maximum for made in (upright, turned)}
    return upright if width[upright] <= stdout.width else min(width, key=width.__getitem__)


def _rich(rows: Sequence[Sequence[str]], title: str) -> RichTable:
    out = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(rows[0]):
        out.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows[1:]:
        out.add_row(*row)
    return out
