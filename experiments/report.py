"""Write one self-contained page of pictures of a run, or of a comparison of several runs.

The jobs of a sweep are compared as they are on disk, even while some are still running. Jobs that failed or have not
started are listed.

python -m experiments.report outputs/2026-11-23/12-00-00
python -m experiments.report outputs/2026-11-23/12-30-00 outputs/2026-11-23/12-40-00 --write comparison.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.common.entry import one_line_errors
from experiments.common.tables import print_path, stdout
from experiments.pictures.page import REPORT, Contents, write_page
from experiments.pictures.picture import Table
from experiments.pictures.text import rich
from experiments.sweeps.report import show
from experiments.sweeps.sweep import is_sweep, read
from specdec.errors import InputError
from specdec.runs.read import Run, find_runs, run_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of runs (a sweep)")
    parser.add_argument("--write", type=Path, help=f"the page; default: {REPORT} in the folder, if it is one")
    options = parser.parse_args(arguments)
    with one_line_errors():
        sweeps = [folder for folder in options.folders if is_sweep(folder)]
        for folder in sweeps:
            show(read(folder), page=False)
        if len(sweeps) == len(options.folders) and not any(map(run_folders, sweeps)):
            return  # no job has begun a run
        file = options.write or (options.folders[0] if len(options.folders) == 1 else Path()) / REPORT
        write(find_runs(options.folders), file)


def write(runs: Sequence[Run], file: Path) -> None:
    """Write the page, and print its figures.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_page(runs, file)
    except OSError as error:
        raise InputError(
            "--write", expected="a file that can be written", got=f"{str(file)!r} ({error.strerror})",
            fix="choose another with --write",
        ) from error  # fmt: skip
    print_figures(Contents.of(runs))
    print_path("report", file)


def print_figures(contents: Contents) -> None:
    """Print the tables of the pictures as text."""
    for line in (contents.title, *contents.head, *contents.notes):
        stdout.print(line, soft_wrap=True, highlight=False)
    if contents.tiles:
        tiles = Table(("figure", "value", ""), [(tile.label, tile.value, tile.note) for tile in contents.tiles])
        stdout.print(rich(tiles, "headline"))
    if contents.table:
        stdout.print(rich(contents.table, "the runs"))
    for picture in contents.pictures:
        stdout.print(rich(picture.table, picture.title))


if __name__ == "__main__":
    main()
