"""Test whether runs, or groups of runs, differ: paired over prompts, with intervals.

python -m experiments.compare outputs/2026-11-23/12-30-00 outputs/2026-11-23/12-40-00
python -m experiments.compare outputs/2026-11-23/12-30-00 outputs/2026-11-23/12-40-00 --write differences.json

A group is a run folder, or a folder of runs that differ in their seeds only. Each group is compared with the first. The
exit status is 0 for any result and 2 for bad input. With --fail-if-worse it is 1 if a later group is worse.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.common.entry import one_line_errors, stderr
from experiments.common.tables import print_path, stdout, within
from experiments.pictures.several_runs import warnings
from specdec.files.durable import write_json
from specdec.measure.comparison import PLAIN, Difference, compare
from specdec.notes import counted
from specdec.runs.read import Run, find_runs

WORSE = 1  # exit status
FALSE_ALARMS = "Where nothing differs, each verdict claims a difference 5 times in 100."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="a run folder, or a folder of runs")
    parser.add_argument("others", type=Path, nargs="+", help="likewise; each is compared with the first")
    parser.add_argument("--write", type=Path, help="a JSON file for the figures")
    parser.add_argument("--fail-if-worse", action="store_true", help="end with status 1 if another group is worse")
    options = parser.parse_args(arguments)
    with one_line_errors():
        first = find_runs([options.first])
        found = []
        for folder in options.others:
            group = find_runs([folder])
            differences, prompts = compare(first, group)
            runs = f"{len(group)} and {counted(len(first), 'run')}"
            title = f"{folder} over {options.first}: {counted(prompts, 'prompt')}, {runs}"
            stdout.print(table(differences, title))
            for line in notes(first, group, prompts):
                stdout.print(line, soft_wrap=True, highlight=False)
            found.append({"folder": str(folder), "prompts": prompts, "differences": [asdict(d) for d in differences]})
        stdout.print(FALSE_ALARMS, highlight=False)
        if options.write is not None:
            write_json(options.write, {"first": str(options.first), "others": found})
            print_path("differences", options.write)
        if options.fail_if_worse and (worse := [line for one in found for line in worse_figures(one)]):
            stderr.print(f"worse: {'; '.join(worse)}", soft_wrap=True, highlight=False)
            sys.exit(WORSE)


def table(differences: Sequence[Difference], title: str) -> Table:
    """Show one figure per row."""
    out = Table(title=title)
    out.add_column("figure", no_wrap=True)
    for column in ("first", "second", "ratio"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("verdict")
    for d in differences:
        out.add_row(d.name, f"{d.first:.3f}", f"{d.second:.3f}", within(d.ratio, d.interval, ".3f"), d.verdict)
    return out


def notes(first: Sequence[Run], second: Sequence[Run], prompts: int) -> list[str]:
    """Return notes on two groups: unfinished or disturbed runs, prompts left out, different targets or machines.

    Args:
        first, second: the groups.
        prompts: number of prompts that were compared.
    """
    runs = [*first, *second]
    most = max(len({(g.get("prompt"), g.get("turn")) for g in run.generations}) for run in runs)
    missing = counted(most - prompts, "prompt")
    verb = "is" if most - prompts == 1 else "are"
    left_out = [f"{missing} that not all runs answered {verb} left out."] if most > prompts else []
    of_runs = [f"{run.folder}: {note}" for run in runs for note in run.notes if "older version" not in note]
    return [*left_out, *of_runs, *warnings({str(run.folder): run for run in runs})]


def worse_figures(found: dict[str, Any]) -> list[str]:
    """Return the figures in which a group is worse than the first.

    Plain decoding is left out, because a group's drafter does not change it.
    """
    return [
        f"{found['folder']}: {d['name']} {d['ratio']:.3f}"
        for d in found["differences"]
        if d["verdict"].startswith("the first is") and d["name"] != PLAIN.name
    ]


if __name__ == "__main__":
    main()
