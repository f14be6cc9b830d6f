"""Print summaries as tables on the terminal. Every figure is read from the dict of `summary.json`, none is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments.common.entry import stderr
from experiments.common.escape import SafeConsole

Summary = Mapping[str, Any]
MOST_COLUMNS = 7  # of 12 letters, on a terminal of 130
# piped output has no width of its own; a narrower one would cut the tables' columns
stdout = SafeConsole(width=None if sys.stdout.isatty() else 130)


@contextmanager
def progress_bar(total: int, what: str = "prompts") -> Iterator[Callable[[Any], None]]:
    """Show a bar on stderr. Yields a function to call once per prompt and turn (or other unit).

    Args:
        total: number of units.
        what: their name.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(what, total=total)
        yield lambda _: progress.advance(task)


def print_summary(summary: Summary, folder: Path) -> None:
    """Print one run: its figures, then the same by category and by seed."""
    s = summary
    loss = "lossless" if s["lossless"] else "lossy"
    where = f"{s['device']}, {s['dtype']}, {s['threads']} threads, kernel {s['kernel']}, temperature {s['temperature']}"
    tree = "" if s.get("tree") in {None, "as_drafted"} else f" with {s['tree']} trees"
    head = Table(title=f"{s['drafter']}{tree} on {s['target']} ({where}, batch {s['batch_size']})", show_header=False)
    head.add_column(no_wrap=True)
    head.add_column()
    seeds = f" x {len(s['seeds'])} seeds" if len(s.get("seeds", ())) > 1 else ""
    rows = {
        "prompts x repeats": f"{s['prompts']} x {s['repeats']}{seeds}, {s['new_tokens']} new tokens",
        "tokens per step τ": number(s["tokens_per_step"]),
        "acceptance length": number(s["acceptance_length"]),
        "acceptance rate": number(s["acceptance_rate"]),
        "acceptance at depth": "  ".join(f"{d}: {number(a)}" for d, a in enumerate(s["acceptance_at_depth"], 1)) or "-",
        "draft efficiency": number(s["draft_efficiency"]),
        "ms per step": "  ".join(f"{phase} {ms:.1f}" for phase, ms in s["phase_ms"].items()),
        "tokens/s": f"{s['tokens_per_second']:.1f}",
        "autoregressive tokens/s": f"{s['autoregressive_tokens_per_second']:.1f}",
        "speedup": speedup(s),
    }
    for reference in [s["reference"], *s["other_references"]] if s["reference"] else []:
        rows[f"{reference['name']} tokens/s"] = f"{reference['tokens_per_second']:.1f}"
        rows[f"speedup over {reference['name']}"] = speedup(reference)
    rows |= {f"{name} tokens/s": why for name, why in s["missing_references"].items()}
    rows["acceptance rule"] = f"{s['acceptance']} ({loss})"
    rows["texts identical"] = identical(s)
    if s["strays"] is not None:
        rows["strays (lossy)"] = strays(s["strays"])
    if s.get("skipped"):
        rows["left out (too long)"] = left_out(s["skipped"])
    if s.get("quiet"):
        rows["machine"] = machine(s["quiet"])
        rows |= energy(s["quiet"]["joules_per_token"])
    rows["peak memory"] = f"{s['peak_memory_mb']:,.0f} MB"
    for name, value in rows.items():
        head.add_row(name, value)
    stdout.print(head)
    stdout.print(comparison(s["by_category"], "category"))
    if s.get("by_seed"):
        stdout.print(comparison(s["by_seed"], "seed"))
    print_path("run folder", folder)


def print_path(what: str, path: Path) -> None:
    """Print a path on one line without styles, so that it can be copied."""
    stdout.print(f"{what}: {path}", soft_wrap=True, highlight=False)


def comparison(summaries: Mapping[str, Summary], what: str) -> Table:
    """Show several summaries (jobs of a sweep, or categories of a run), one per row."""
    table = Table(title=f"by {what}")
    table.add_column(what, overflow="fold")  # names are never cut
    for column in (
        "prompts",
        "τ",
        "acceptance rate",
        "tokens/s",
        "autoregressive",
        "speedup [95 % interval]",
        "identical",
    ):
        table.add_column(column, justify="right")
    for name, s in summaries.items():
        table.add_row(
            name,
            str(s["prompts"]),
            number(s["tokens_per_step"]),
            number(s["acceptance_rate"]),
            f"{s['tokens_per_second']:.1f}",
            f"{s['autoregressive_tokens_per_second']:.1f}",
            speedup(s),
            identical(s).partition(" ")[0],
        )
    return table


def steps(summaries: Mapping[str, Summary], what: str) -> Table:
    """Show a step of each run (time by phase, acceptance by depth), and the size and training of its drafter."""
    table = Table(title="a step, and its drafter")
    table.add_column(what, overflow="fold")
    for column in (
        "draft ms",
        "verify ms",
        "draft efficiency",
        "parameters added",
        "training tokens",
        "acceptance at depth",
    ):
        table.add_column(column, justify="left" if column.startswith("acceptance ") else "right")
    for name, s in summaries.items():
        depths = "  ".join(f"{d}: {number(a)}" for d, a in enumerate(s["acceptance_at_depth"], 1)) or "-"
        draft, verify = (f"{s['phase_ms'][phase]:.1f}" for phase in ("draft", "verify"))
        tokens = "-" if s["training_tokens"] is None else f"{s['training_tokens']:,}"
        table.add_row(name, draft, verify, number(s["draft_efficiency"]), f"{s['parameters_added']:,}", tokens, depths)
    return table


def by_category(summaries: Mapping[str, Summary]) -> Table:
    """Show τ and speedup of each run by category; runs become rows if they do not fit as columns."""
    categories = list(dict.fromkeys(category for s in summaries.values() for category in s["by_category"]))
    figures = [[s["by_category"].get(category) for category in categories] for s in summaries.values()]
    cells = [[f"{number(f['tokens_per_step'])} ({f['speedup']:.2f}x)" if f else "-" for f in row] for row in figures]
    upright = len(summaries) <= MOST_COLUMNS
    columns, rows = (list(summaries), categories) if upright else (categories, list(summaries))
    table = Table(title="τ (speedup) by category")
    table.add_column("category" if upright else "job", overflow="fold")
    for name in columns:
        table.add_column(name.replace("=", "=\n"), justify="right", overflow="fold", min_width=12)
    for name, row in zip(rows, zip(*cells, strict=True) if upright else cells, strict=True):
        table.add_row(name, *row)
    return table


def strays(figures: Mapping[str, Any]) -> str:
    equal = "" if figures["equal_tokens"] is None else f"{figures['equal_tokens']:.0%} of tokens equal greedy text, "
    ours, base = figures["mean_logprob"], figures["autoregressive_mean_logprob"]
    return f"{equal}mean log-probability {ours:.3f} against {base:.3f} of plain decoding"


def left_out(skipped: Sequence[Mapping[str, Any]]) -> str:
    """List the prompts that did not fit the context window, with their lengths."""
    shown = []
    for one in skipped[:3]:
        turn = f" from turn {one['turn'] + 1}" if one["turn"] else ""
        shown.append(f"{one['prompt']}{turn}: {one['tokens']:,} tokens")
    more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    return f"{'; '.join(shown)}{more}, room for {skipped[0]['room']:,}"


def machine(quiet: Summary) -> str:
    """Say whether something else used the machine while the run was timed."""
    if not quiet["disturbed"]:
        return f"quiet in all {quiet['rounds']} rounds" + (
            f", {quiet['repeated']} repeated" if quiet["repeated"] else ""
        )
    repeated = f"; {quiet['repeated']} were repeated" if quiet["repeated"] else ""
    return f"DISTURBED in {quiet['disturbed']} of {quiet['rounds']} rounds: {quiet['worst']}{repeated}"


def energy(joules: Mapping[str, float | None]) -> dict[str, str]:
    """Return a row with joules per token of each method, empty if the machine does not measure energy."""
    known = {name: value for name, value in joules.items() if value is not None}
    return {"joules per token": "  ".join(f"{name} {value:.2f}" for name, value in known.items())} if known else {}


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def speedup(figures: Summary) -> str:
    interval = figures.get("speedup_ci95")
    return f"{figures['speedup']:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def identical(figures: Summary) -> str:
    """Say how many greedy texts equal the baseline's, and how close the two best tokens were where texts differ."""
    divergence = figures["divergence"]
    if divergence is None:
        return "- (sampled)"
    parted: Sequence[dict[str, Any]] = divergence["prompts"]
    if not parted or not all(
        "explained" in prompt for prompt in parted
    ):  # written by an older version, which did not check for ties
        return f"{divergence['identical']}/{divergence['total']}"
    ties, widest = sum(prompt["explained"] for prompt in parted), max(prompt["margin"] for prompt in parted)
    note = f"({ties} of {len(parted)} part at a near tie, widest top-1/top-2 margin {widest:.2g})"
    return f"{divergence['identical']}/{divergence['total']} {note}"
