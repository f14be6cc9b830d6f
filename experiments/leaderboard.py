"""Make a leaderboard of all runs in a folder: one row per target, drafter, machine and prompts.

python -m experiments.leaderboard outputs/
python -m experiments.leaderboard outputs/ multirun/ --write leaderboard.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.common.entry import one_line_errors
from experiments.common.tables import print_path, stdout
from experiments.pictures.leaderboard import FILTERED, LEADERBOARD, Leaderboard, write_leaderboard
from experiments.pictures.picture import Table
from experiments.pictures.text import rich
from specdec.runs.read import find_runs

SHOWN = (*FILTERED, "speedup", "95 % from", "to", "τ (tokens per step)", "started")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.leaderboard", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--write", type=Path, help=f"the page; default: {LEADERBOARD} in the first folder")
    options = parser.parse_args(arguments)
    with one_line_errors():
        file = options.write or options.folders[0] / LEADERBOARD
        board = write_leaderboard(find_runs(options.folders), file)
        stdout.print(rich(short(board), "leaderboard"))
        print_path("leaderboard", file)


def short(board: Leaderboard) -> Table:
    """Show the columns that fit on a terminal."""
    places = [board.table.columns.index(name) for name in SHOWN]
    return Table(SHOWN, [[row[place] for place in places] for row in board.table.rows])


if __name__ == "__main__":
    main()
