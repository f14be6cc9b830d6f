"""Time a forward of the target by tokens, prefix and batch: a table, `profile.json`, and a plot.

python -m experiments.profile_target target=smollm2_135m
python -m experiments.profile_target target=smollm2_135m target.runtime=stock grid.tokens=[] rounds=10
python -m experiments.profile_target target=smollm2_135m exit_layer=10 grid.tokens=[]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import plotly.graph_objects as go
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from plotly.subplots import make_subplots
from rich.table import Table
from rich.text import Text

from experiments.common.components import instantiate
from experiments.common.entry import CONF, stderr
from experiments.common.resources import timed
from experiments.common.settings import typed
from experiments.common.tables import progress_bar, stdout, within
from experiments.common.task import Task
from experiments.pictures.style import COLOURS
from experiments.sweeps.launch import launch
from specdec.files.durable import write_json
from specdec.measure.profiling import Footprint, figures, fitting, profile, sweep
from specdec.notes import counted
from specdec.options import Count, Natural, Seed
from specdec.runs.provenance import provenance

AXES = {"tokens": "tokens in a forward", "prefix": "tokens before it", "batch": "rows"}
Figures = dict[str, Any]


@dataclass
class Base:
    """The option `base`, as in conf/profile_target.yaml."""

    tokens: int
    prefix: int
    batch: int


@dataclass
class Axes:
    """The options `axes` and `grid`, as in conf/profile_target.yaml."""

    tokens: list[int]
    prefix: list[int]
    batch: list[int]


@dataclass
class Sweeps:
    """Options as in conf/profile_target.yaml."""

    base: Base
    axes: Axes
    grid: Axes
    rounds: Count
    buffer_mib: Count
    matrix: Count
    seed: Seed
    exit_layer: Natural | None
    exclusive: bool = True


@hydra.main(config_path=CONF, config_name="profile_target", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Sweeps)
    base, axes, grid = asdict(o.base), asdict(o.axes), asdict(o.grid)
    sweep(base, axes, grid)  # refuses impossible points before a model is loaded
    target = instantiate(cfg.target)
    clip(base, axes, grid, target.context_window)
    points = sweep(base, axes, grid)
    with timed(target.device, o.exclusive, "profile_target"), progress_bar(o.rounds, "rounds") as advance:
        measured = profile(target, points, o.rounds, o.seed, o.buffer_mib, o.matrix, advance, o.exit_layer)
    rows = figures(Footprint.of(target), measured)
    ceilings = measured.ceilings
    head = {
        "target": target.name,
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "kernel": target.kernel.name,
        "skips_padding": target.skips_padding,
        "exit_layer": o.exit_layer,
        "ceilings": {
            "gb_per_second": ceilings.bytes_per_second / 1e9,
            "gflop_per_second": ceilings.flops_per_second / 1e9,
        },
    }
    origin = provenance()
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_json(folder / "profile.json", {**head, "points": rows, "provenance": origin})
    title = f"a forward of {target.name} ({head['device']}, {head['dtype']}, {counted(origin['threads'], 'thread')})"
    plot(rows, base, grid, title).write_html(folder / "profile.html", include_plotlyjs=True)
    stdout.print(table(rows, base, title, o.exit_layer))
    stdout.print(
        f"this machine at best: reads {ceilings.bytes_per_second / 1e9:.1f} GB/s, multiplies "
        f"{ceilings.flops_per_second / 1e9:.0f} GFLOP/s"
    )
    stdout.print(f"run folder: {folder} (profile.json, plot: profile.html)", soft_wrap=True, highlight=False)


def clip(base: dict[str, int], axes: dict[str, list[int]], grid: dict[str, list[int]], window: int | None) -> None:
    """Shorten prefixes in place, so that the largest number of tokens fits after each; print the changes.

    Args:
        base: the base point.
        axes: values of each axis.
        grid: values of the grid.
        window: the model's context window, None if unlimited.
    """
    tokens = max([base["tokens"], *axes["tokens"], *grid["tokens"]])
    wanted = {base["prefix"], *axes["prefix"], *grid["prefix"]}
    axes["prefix"], grid["prefix"] = (fitting(part["prefix"], tokens, window) for part in (axes, grid))
    (base["prefix"],) = fitting([base["prefix"]], tokens, window)
    kept = {base["prefix"], *axes["prefix"], *grid["prefix"]}
    for prefix in sorted(wanted - kept):
        stderr.print(
            f"prefix {prefix} is cut to {max(kept)}: the context window is {window} tokens, {tokens} of them new"
        )


def table(rows: Sequence[Figures], base: dict[str, int], title: str, exit_layer: int | None) -> Table:
    """Show the three sweeps around the base point. The grid is in the plot and in `profile.json`.

    Args:
        rows: the timed points.
        base: the base point.
        title: title of the table.
        exit_layer: layer from which a verify continues, None for whole forwards only.
    """
    out = Table(title=title)
    columns = ["tokens", "prefix", "batch", "ms [quartiles]", "min", "GB/s", "of best", "GFLOP/s", "of best"]
    for column in columns if exit_layer is None else [*columns, f"from layer {exit_layer} on [95 %]"]:
        out.add_column(column, justify="right", no_wrap=True)
    for axis in AXES:
        out.add_section()
        for row in curve(rows, base, axis):
            out.add_row(
                *(f"{row[name]:,}" if name == axis else Text(f"{row[name]:,}", style="dim") for name in AXES),
                within(row["ms"]["median"], row["ms"]["quartiles"], ".1f"),
                f"{row['ms']['min']:.1f}",
                f"{row['gb_per_second']:.1f}",
                f"{row['of_read_ceiling']:.0%}",
                f"{row['gflop_per_second']:.0f}",
                f"{row['of_product_ceiling']:.0%}",
                *([] if row["resumed"] is None else [within(row["resumed"][0], row["resumed"][1], ".0%")]),
            )
    return out


def curve(rows: Sequence[Figures], base: dict[str, int], axis: str) -> list[Figures]:
    """Return the points that differ from `base` along one axis only, in its order."""
    others = [name for name in AXES if name != axis]
    return sorted((r for r in rows if all(r[name] == base[name] for name in others)), key=lambda r: r[axis])


def plot(rows: Sequence[Figures], base: dict[str, int], grid: dict[str, list[int]], title: str) -> go.Figure:
    """Plot the time along each axis with its lower bound; tokens also at every prefix and batch of the grid.

    Args:
        rows: the timed points.
        base: the base point.
        grid: values of the grid.
        title: title of the plot.
    """
    figure = make_subplots(cols=len(AXES), subplot_titles=list(AXES.values()))
    for column, axis in enumerate(AXES, 1):
        bases = [base]
        if axis == "tokens" and grid["tokens"]:
            crossed = ({"prefix": p, "batch": b} for p, b in product(grid["prefix"], grid["batch"]))
            bases += [{**base, **other} for other in crossed if {**base, **other} != base]
        for number, start in enumerate(bases):
            points = curve(rows, start, axis)
            x, colour = [p[axis] for p in points], COLOURS[number % len(COLOURS)]
            name = f"prefix {start['prefix']}, batch {start['batch']}" if axis == "tokens" else f"along {axis}"
            middles = [p["ms"]["median"] for p in points]
            low, high = zip(*(p["ms"]["quartiles"] for p in points), strict=True)
            figure.add_scatter(
                x=x,
                y=middles,
                error_y={
                    "array": [h - m for h, m in zip(high, middles, strict=True)],
                    "arrayminus": [m - q for m, q in zip(middles, low, strict=True)],
                },
                name=name,
                line={"color": colour},
                row=1,
                col=column,
            )
            limit = [p["limit_ms"] for p in points]
            style = {"color": colour, "dash": "dot"}
            figure.add_scatter(x=x, y=limit, name=f"{name}: limit", mode="lines", line=style, row=1, col=column)
        figure.update_xaxes(title=axis, type="linear" if axis == "prefix" else "log", col=column)
    figure.update_yaxes(title="ms", rangemode="tozero", col=1)
    return figure.update_layout(title=title, template="plotly_white")


if __name__ == "__main__":
    launch(main)
