"""Hydra callbacks: the tables and the report that compare the jobs of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from plotly.subplots import make_subplots

from experiments.pictures.page import REPORT, write_page
from experiments.tables import by_category, comparison, print_path, stdout, steps
from specdec.runs import find_runs


class CompareJobs(Callback):
    """After a `-m` sweep, tables and one report over the summaries of its jobs, named by what they overrode."""

    def __init__(self) -> None:
        self._summaries: dict[str, dict[str, Any]] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        assert job_return.hydra_cfg is not None
        hydra_cfg = job_return.hydra_cfg.hydra
        file = Path(hydra_cfg.runtime.output_dir) / "summary.json"
        if file.exists():
            self._summaries[hydra_cfg.job.override_dirname or str(file.parent)] = json.loads(file.read_text("utf-8"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        common = (
            set.intersection(*(set(name.split(",")) for name in self._summaries)) if len(self._summaries) > 1 else set()
        )
        short = {
            ",".join(part for part in name.split(",") if part not in common) or name: s
            for name, s in self._summaries.items()
        }
        if short:
            stdout.print(comparison(short, "job"))
            stdout.print(steps(short, "job"))
            stdout.print(by_category(short))
            folder = Path(config.hydra.sweep.dir)
            axis = numbers([part.split(",") for part in short])
            if axis is not None:
                figures = dict(sorted(zip(axis[1], short.values(), strict=True)))
                plot(axis[0], figures).write_html(folder / "sweep.html", include_plotlyjs=True)
            print_path("sweep folder", folder)
            if config.report:
                print_path("report", write_page(find_runs([folder]), folder / REPORT))


def numbers(overrides: Sequence[Sequence[str]]) -> tuple[str, list[float]] | None:
    """The one number that the jobs of a sweep differ in, and its values; None where they differ in something else."""
    parts = [job[0].partition("=") for job in overrides if len(job) == 1]
    if len(parts) < max(len(overrides), 2) or len({name for name, _, _ in parts}) > 1:
        return None
    try:
        return parts[0][0], [float(value) for _, _, value in parts]
    except ValueError:
        return None


def plot(axis: str, summaries: Mapping[float, dict[str, Any]]) -> go.Figure:
    """τ and tokens/s over the number, plain decoding beside them."""
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
