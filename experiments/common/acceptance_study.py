"""The synthetic comparison of acceptance rules: `python -m experiments.compare_acceptance synthetic=true`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from experiments.common.parts import rule
from experiments.common.tables import stdout
from specdec.exactness.synthetic import Study
from specdec.files.durable import write_json
from specdec.runs.provenance import provenance


def study(chosen: Study, folder: Path) -> list[dict[str, Any]]:
    """Compute, write and print the study. Returns its results."""
    rules = [rule(name) for _, name in chosen.choices]
    chosen.check()
    torch.set_num_threads(1)  # small tensors
    results = chosen.results(rules)
    write_json(folder / "summary.json", {"vocab": chosen.vocab, "widths": chosen.widths, "results": results})
    write_json(folder / "provenance.json", provenance())
    title = f"expected accepted length (vocabulary {chosen.vocab}, widths {chosen.widths}, exact)"
    stdout.print(table(results, title))
    return results


def table(results: list[dict[str, Any]], title: str) -> Table:
    """Show the rules by distance."""
    out = Table(title=title)
    out.add_column("siblings", no_wrap=True)
    out.add_column("rule", no_wrap=True)
    distances = list(dict.fromkeys(r["distance"] for r in results))
    for distance in distances:
        variation = next(r["total_variation"] for r in results if r["distance"] == distance)
        out.add_column(f"d={distance:g}\nTV {variation:.2f}", justify="right")
    for how, name in dict.fromkeys((r["siblings"], r["rule"]) for r in results):
        of_rule = [r for r in results if (r["siblings"], r["rule"]) == (how, name)]
        out.add_row(how, name, *(f"{r['accepted']:.3f}" for r in of_rule))
    return out
