"""Print summaries as tables on the terminal. Every figure is read from the `Summary`, none is computed."""

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
from specdec.notes import counted
from specdec.runs.summary import Figures, LeftOut, Quiet, Rival, Strays, Summary

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


def print_summary(s: Summary, folder: Path) -> None:
    """Print one run: its figures, then the same by category and by seed."""
    where = f"{s.device}, {s.dtype}, {counted(s.threads, 'thread')}, kernel {s.kernel}, temperature {s.temperature}"
    tree = "" if s.tree in {None, "as_drafted"} else f" with {s.tree} trees"
    head = Table(title=f"{s.drafter}{tree} on {s.target} ({where}, batch {s.batch_size})", show_header=False)
    head.add_column(no_wrap=True)
    head.add_column()
    for name, value in {**_figures(s), **_comparisons(s), **_conditions(s)}.items():
        head.add_row(name, value)
    stdout.print(head)
    stdout.print(comparison(s.by_category, "category"))
    if s.by_seed:
        stdout.print(comparison(s.by_seed, "seed"))
    print_path("run folder", folder)


def _figures(s: Summary) -> dict[str, str]:
    seeds = f" x {len(s.seeds)} seeds" if len(s.seeds) > 1 else ""
    return {
        "prompts x repeats": f"{s.prompts} x {s.repeats}{seeds}, {counted(s.new_tokens, 'new token')}",
        "tokens per step τ": number(s.tokens_per_step),
        "acceptance length": number(s.acceptance_length),
        "acceptance rate": number(s.acceptance_rate),
        "acceptance at depth": by_depth(s),
        "draft efficiency": number(s.draft_efficiency),
        "ms per step": "  ".join(f"{phase} {ms:.1f}" for phase, ms in s.phase_ms.items()),
        "tokens/s": rate(s.tokens_per_second),
        "autoregressive tokens/s": rate(s.autoregressive_tokens_per_second),
        "speedup": speedup(s),
    }


def _comparisons(s: Summary) -> dict[str, str]:
    """Return rows that compare the run with other methods, and its texts with those of the plain target."""
    rows = {}
    for rival in s.rivals:
        rows[f"{rival.name} tokens/s"] = rate(rival.tokens_per_second)
        rows[f"speedup over {rival.name}"] = speedup(rival)
    rows |= {f"{name} tokens/s": why for name, why in s.missing_references.items()}
    rows["acceptance rule"] = f"{s.acceptance} ({'lossless' if s.lossless else 'lossy'})"
    rows["texts identical"] = identical(s)
    if s.strays is not None:
        rows["strays (lossy)"] = strays(s.strays)
    return rows


def _conditions(s: Summary) -> dict[str, str]:
    rows = {}
    if s.skipped:
        rows["left out (too long)"] = left_out(s.skipped)
    if s.quiet:
        rows["machine"] = machine(s.quiet)
        rows |= energy(s.quiet.joules_per_token)
    rows["peak memory"] = "-" if s.peak_memory_mb is None else f"{s.peak_memory_mb:,.0f} MB"
    return rows


def print_path(what: str, path: Path) -> None:
    """Print a path on one line without styles, so that it can be copied."""
    stdout.print(f"{what}: {path}", soft_wrap=True, highlight=False)


def comparison(summaries: Mapping[str, Figures], what: str) -> Table:
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
            str(s.prompts),
            number(s.tokens_per_step),
            number(s.acceptance_rate),
            rate(s.tokens_per_second),
            rate(s.autoregressive_tokens_per_second),
            speedup(s),
            identical(s).partition(" ")[0],
        )
    return table


def steps(summaries: Mapping[str, Summary], what: str) -> Table:
    """Show a step of each run (time by phase, acceptance by depth), and the size and training of its drafter."""
    table = Table(title="a step, and its drafter")
    table.add_column(what, overflow="fold")
    warm = any(s.known_tokens is not None for s in summaries.values())
    for column in (
        *("draft ms", "verify ms", "draft efficiency", "parameters added", "training tokens"),
        *["known tokens"] * warm,
        "acceptance at depth",
    ):
        table.add_column(column, justify="left" if column.startswith("acceptance ") else "right")
    for name, s in summaries.items():
        draft, verify = (rate(s.phase_ms.get(phase)) for phase in ("draft", "verify"))
        counts = (s.parameters_added, s.training_tokens, *[s.known_tokens] * warm)
        table.add_row(name, draft, verify, number(s.draft_efficiency), *map(whole, counts), by_depth(s))
    return table


def by_category(summaries: Mapping[str, Summary]) -> Table:
    """Show τ and speedup of each run by category; runs become rows if they do not fit as columns."""
    categories = list(dict.fromkeys(category for s in summaries.values() for category in s.by_category))
    figures = [[s.by_category.get(category) for category in categories] for s in summaries.values()]
    cells = [[f"{number(f.tokens_per_step)} ({ratio(f.speedup)})" if f else "-" for f in row] for row in figures]
    upright = len(summaries) <= MOST_COLUMNS
    columns, rows = (list(summaries), categories) if upright else (categories, list(summaries))
    table = Table(title="τ (speedup) by category")
    table.add_column("category" if upright else "job", overflow="fold")
    for name in columns:
        table.add_column(name.replace("=", "=\n"), justify="right", overflow="fold", min_width=12)
    for name, row in zip(rows, zip(*cells, strict=True) if upright else cells, strict=True):
        table.add_row(name, *row)
    return table


def strays(found: Strays) -> str:
    equal = "" if found.equal_tokens is None else f"{found.equal_tokens:.0%} of tokens equal greedy text, "
    ours, base = (f"{value:.3f}" for value in (found.mean_logprob, found.autoregressive_mean_logprob))
    return f"{equal}mean log-probability {ours} against {base} of plain decoding"


def left_out(skipped: Sequence[LeftOut]) -> str:
    """List the prompts that did not fit the context window, with their lengths."""
    shown = []
    for one in skipped[:3]:
        turn = f" from turn {one.turn + 1}" if one.turn else ""
        shown.append(f"{one.prompt}{turn}: {counted(one.tokens, 'token')}")
    more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    return f"{'; '.join(shown)}{more}, room for {skipped[0].room:,}"


def machine(quiet: Quiet) -> str:
    """Say whether something else used the machine while the run was timed."""
    if not quiet.disturbed:
        return f"quiet in all {counted(quiet.rounds, 'round')}" + (
            f", {quiet.repeated} repeated" if quiet.repeated else ""
        )
    repeated = f"; {quiet.repeated} {'was' if quiet.repeated == 1 else 'were'} repeated" if quiet.repeated else ""
    return f"DISTURBED in {quiet.disturbed} of {counted(quiet.rounds, 'round')}: {quiet.worst}{repeated}"


def energy(joules: Mapping[str, float | None]) -> dict[str, str]:
    """Return a row with joules per token of each method, empty if the machine does not measure energy."""
    known = {name: value for name, value in joules.items() if value is not None}
    return {"joules per token": "  ".join(f"{name} {value:.2f}" for name, value in known.items())} if known else {}


def by_depth(s: Figures) -> str:
    """Show the acceptance at depths 1, 2, ..."""
    return "  ".join(f"{depth}: {number(value)}" for depth, value in enumerate(s.acceptance_at_depth, 1)) or "-"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def ratio(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Show a ratio with its 95 % interval, if it has one: "1.52x [1.40, 1.63]"."""
    return "-" if value is None else within(value, interval, between="x ")


def within(value: float, interval: Sequence[float] | None, form: str = ".2f", between: str = " ") -> str:
    """Show a figure with its 95 % interval, if it has one: "3.20 [3.10, 3.31]".

    Args:
        value: the figure.
        interval: its interval.
        form: format of the numbers.
        between: text after the figure, a unit for instance; spaces at its end are dropped without an interval.
    """
    bounds = f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return f"{value:{form}}{between}{bounds}".rstrip()


def speedup(figures: Figures | Rival) -> str:
    return ratio(figures.speedup, figures.speedup_ci95)


def identical(figures: Figures) -> str:
    """Say how many greedy texts equal the baseline's, and how close the two best tokens were where texts differ."""
    found = figures.divergence
    if found is None:
        return "- (sampled)"
    counts = f"{found.identical}/{found.total}"
    margins = [parting.margin for parting in found.prompts if parting.margin is not None]
    if not margins or any(parting.explained is None for parting in found.prompts):
        return counts  # an older version did not check for ties
    ties = sum(bool(parting.explained) for parting in found.prompts)
    widest = f"widest top-1/top-2 margin {max(margins):.2g}"
    return f"{counts} ({ties} of {len(found.prompts)} part at a near tie, {widest})"
