"""Compare the jobs of a sweep in tables, a plot and a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.table import Table

from experiments.common.tables import by_category, comparison, print_path, stdout, steps
from experiments.pictures.page import REPORT, write_page
from experiments.sweeps.job_names import numbers
from experiments.sweeps.sweep import FAILED, FINISHED, Job, Sweep
from specdec.files.durable import write_text
from specdec.runs.read import find_runs, run_folders
from specdec.runs.summary import Summary

COMPARED = ("speedup", "by_category", "divergence", "parameters_added", "training_tokens")  # read by the tables
PLOT = "sweep.html"


def show(sweep: Sweep, page: bool) -> None:
    """Print the comparison, and write `failed.jsonl`, the plot and, if `page` is set, the page of all runs so far."""
    done = {sweep.names[job.number]: job.summary for job in sweep.jobs if job.summary}
    if done and all(set(COMPARED) <= set(summary) for summary in done.values()):
        read = {name: Summary.read(summary)[0] for name, summary in done.items()}
        stdout.print(comparison(read, "job"))
        stdout.print(steps(read, "job"))
        stdout.print(by_category(read))
        plot_over_a_number(sweep)
    elif any(job.status == FINISHED for job in sweep.jobs):
        stdout.print(figures(sweep))
    if sweep.unfinished:
        stdout.print(unfinished(sweep))
    sweep.write_failed()
    if sweep.failed:
        print_path("failed jobs", sweep.folder / FAILED)
    print_path("sweep folder", sweep.folder)
    if page and run_folders(sweep.folder):
        print_path("report", write_page(find_runs([sweep.folder]), sweep.folder / REPORT))


def unfinished(sweep: Sweep) -> Table:
    """Show the jobs that have not finished, and why."""
    table = Table(title=f"{len(sweep.unfinished)} of {len(sweep.jobs)} jobs have not finished")
    for column in ("job", "name", "status", "why"):
        table.add_column(column, overflow="fold")
    for job in sweep.unfinished:
        why = "" if job.error == job.status else job.error
        table.add_row(str(job.number), sweep.names[job.number], job.status, why)
    return table


def figures(sweep: Sweep) -> Table:
    """Show the objective of each job, and the numbers of its summary that differ between jobs."""
    finished = [job for job in sweep.jobs if job.status == FINISHED]
    found = {job.number: _numbers(job) for job in finished}
    columns = [key for key in dict.fromkeys(k for f in found.values() for k in f) if _differs(key, found)]
    table = Table(title="by job")
    for column in ("job", "objective", *columns):
        table.add_column(column, justify="left" if column == "job" else "right")
    for job in finished:
        cells = [_cell(job.value), *(_cell(found[job.number].get(column)) for column in columns)]
        table.add_row(sweep.names[job.number], *cells)
    return table


def plot_over_a_number(sweep: Sweep) -> None:
    """Write `sweep.html` if the finished jobs differ only in one number."""
    jobs = {job.number: job for job in sweep.jobs if job.summary}
    axis = numbers({number: job.overrides for number, job in jobs.items()})
    if axis is not None:
        by_value = sorted(axis[1].items(), key=lambda item: item[1])  # a search may take a value twice
        curve = {value: jobs[number].summary for number, value in by_value}
        write_text(sweep.folder / PLOT, plot(axis[0], curve).to_html(include_plotlyjs=True))


def plot(axis: str, summaries: Mapping[float, dict[str, Any]]) -> go.Figure:
    """Plot τ and tokens/s over the number, with plain decoding for comparison."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    curves = (
        ("tokens_per_step", "τ"),
        ("tokens_per_second", "tokens/s"),
        ("autoregressive_tokens_per_second", "plain"),
    )
    for key, name in curves:
        values = [summary[key] for summary in summaries.values()]
        dash = "dash" if name == "plain" else "solid"
        line = go.Scatter(x=list(summaries), y=values, name=name, mode="lines+markers", line={"dash": dash})
        figure.add_trace(line, secondary_y=key != "tokens_per_step")
    figure.update_xaxes(title=axis)
    figure.update_yaxes(title="τ", secondary_y=False)
    figure.update_yaxes(title="tokens/s", secondary_y=True)
    return figure.update_layout(template="plotly_white")


def _numbers(job: Job) -> dict[str, float]:
    return {k: v for k, v in job.summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _differs(key: str, found: Mapping[int, Mapping[str, float]]) -> bool:
    return len({numbers_of_job.get(key) for numbers_of_job in found.values()}) > 1


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
