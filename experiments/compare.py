"""Say whether two runs, or two groups of runs, differ: paired over prompts, with intervals.

python -m experiments.compare outputs/2026-11-23/12-30-00 outputs/2026-11-23/12-40-00
python -m experiments.compare multirun/2026-11-23/12-30-00 multirun/2026-11-23/12-40-00 --write differences.json

A group is a run folder, or a folder of runs that differ in their seeds only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from experiments.entry import one_line_errors
from experiments.tables import print_path, stdout
from specdec.comparison import Difference, compare
from specdec.files import write_json
from specdec.runs import find_runs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="a run folder, or a folder of runs")
    parser.add_argument("second", type=Path, help="likewise")
    parser.add_argument("--write", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    with one_line_errors():
        groups = [find_runs([folder]) for folder in (options.first, options.second)]
        differences, prompts = compare(*groups)
        runs = " and ".join(str(len(group)) for group in groups)
        stdout.print(table(differences, f"{options.second} over {options.first}: {prompts} prompts, {runs} runs"))
        if options.write is not None:
            found = {"prompts": prompts, "differences": [asdict(difference) for difference in differences]}
            write_json(options.write, found)
            print_path("differences", options.write)


def table(differences: Sequence[Difference], title: str) -> Table:
    """One figure a row."""
    out = Table(title=title)
    out.add_column("figure", no_wrap=True)
    for column in ("first", "second", "ratio"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("verdict")
    for d in differences:
        interval = "" if d.interval is None else f" [{d.interval[0]:.3f}, {d.interval[1]:.3f}]"
        out.add_row(d.name, f"{d.first:.3f}", f"{d.second:.3f}", f"{d.ratio:.3f}{interval}", d.verdict)
    return out


if __name__ == "__main__":
    main()
