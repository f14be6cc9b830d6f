"""Predict what bounds a model on a machine from its config: time, intensity and memory of its forwards.

python -m experiments.roofline target=llama2_7b hardware=a100_80g
python -m experiments.roofline target=hf target.name=Qwen/Qwen3-4B hardware=rtx_4090 precision.weights=int8
python -m experiments.roofline target=smollm2_135m hardware=this hardware.file=outputs/.../profile.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import plotly.graph_objects as go
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import instantiate
from experiments.common.cost_model import Modelled, where
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.pictures.style import BLUE, GREEN, GREY, ORANGE, VERMILION, axis, figure
from experiments.sweeps.launch import launch
from specdec.files.durable import write_json
from specdec.hardware import ForwardCost, Roofline
from specdec.options import Count, Natural
from specdec.runs.provenance import provenance

KINDS = {"decode": VERMILION, "verify": BLUE, "batch": GREEN, "prompt": ORANGE}
CONTEXTS = (512, 4096, 32768, 131072)  # for each, the largest batch that fits is shown


@dataclass
class Options(Modelled):
    """Options as in conf/roofline.yaml."""

    context: Natural = 512
    nodes: list[Count] = field(default_factory=list)
    batches: list[Count] = field(default_factory=list)
    prefill: list[Count] = field(default_factory=list)


@dataclass(frozen=True)
class Predicted:
    """One forward.

    Args:
        kind: one of `KINDS`.
        size: number of nodes, rows or tokens, depending on the kind.
        forward: the forward.
        tokens: tokens that it reads.
    """

    kind: str
    size: int
    forward: ForwardCost
    tokens: int

    @property
    def name(self) -> str:
        return {
            "decode": "decode",
            "verify": f"verify {self.size}",
            "batch": f"decode, batch {self.size}",
            "prompt": f"prompt of {self.size}",
        }[self.kind]

    def figures(self) -> dict[str, Any]:
        f = self.forward
        return {
            "point": self.name,
            "ms": 1e3 * f.seconds,
            "bound": f.bound,
            "flops_per_byte": f.intensity,
            "gigabytes": f.bytes / 1e9,
            "gigaflops": f.flops / 1e9,
            "teraflops_per_second": f.flops / f.seconds / 1e12,
            "communication_ms": 1e3 * f.communication,
            "parts": [asdict(part) for part in f.parts],
        }


@hydra.main(config_path=CONF, config_name="roofline", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Options)
    roofline = o.roofline(cfg.target, instantiate(cfg.hardware))
    made = list(points(roofline, o))
    folder, title = Path(HydraConfig.get().runtime.output_dir), where(roofline)
    head = memory(roofline)
    rows = [point.figures() for point in made]
    write_json(folder / "roofline.json", {"what": title, **head, "points": rows, "provenance": provenance()})
    plot(roofline, made, title).write_html(folder / "roofline.html", include_plotlyjs=True)
    stdout.print(memory_table(roofline, head, title))
    stdout.print(table(rows, f"one forward behind {o.context:,} tokens, per device: predicted, not measured"))
    for point in made:
        if point.kind == "batch" and point.size > roofline.largest_batch(o.context + 1):
            stdout.print(f"{point.size} rows do not fit: the memory holds {roofline.largest_batch(o.context + 1):,}")
    stdout.print(f"run folder: {folder} (roofline.json, plot: roofline.html)", soft_wrap=True, highlight=False)


def points(roofline: Roofline, o: Options) -> Iterator[Predicted]:
    yield Predicted("decode", 1, roofline.decode(1, o.context), 1)
    for n in o.nodes:
        yield Predicted("verify", n, roofline.forward(n, 1, o.context), n)
    for b in o.batches:
        yield Predicted("batch", b, roofline.decode(b, o.context), b)
    for n in o.prefill:
        yield Predicted("prompt", n, roofline.prefill(n), n)


def memory(roofline: Roofline) -> dict[str, Any]:
    """Return the memory use on each device, and the largest batches that fit."""
    windows = [c for c in CONTEXTS if c <= (roofline.shape.window or c)]
    return {
        "parameters": roofline.shape.elements,
        "weight_gigabytes": roofline.weight_bytes / 1e9,
        "kv_bytes_per_token": roofline.kv_bytes,
        "free_gigabytes": roofline.free_bytes / 1e9,
        "largest_context": roofline.largest_context(),
        "largest_batch": {str(c): roofline.largest_batch(c) for c in windows},
        "machine_flops_per_byte": roofline.machine.balance(roofline.precision.compute),
    }


def memory_table(roofline: Roofline, head: dict[str, Any], title: str) -> Table:
    out = Table(title=title, show_header=False)
    machine, dtype = roofline.machine, roofline.precision.compute
    free = head["free_gigabytes"]
    rows = {
        "machine": f"{machine.teraflops[dtype]:g} TFLOP/s {dtype}, {machine.gigabytes_per_second:,.0f} GB/s, "
        f"{machine.gigabytes:,.0f} GB: bound by memory below {head['machine_flops_per_byte']:.0f} operations per byte",
        "weights": f"{head['parameters'] / 1e9:.2f} billion parameters, {head['weight_gigabytes']:.2f} GB a device",
        "KV cache": f"{head['kv_bytes_per_token'] / 1024:,.1f} KiB a token",
        "left for the cache": f"{free:.1f} GB" if free > 0 else f"nothing: {-free:.1f} GB too little on each device",
    }
    if free > 0:
        rows["longest context"] = f"{head['largest_context']:,} tokens in batch 1"
        rows["largest batch"] = "  ".join(f"{int(c):,} tokens: {b:,}" for c, b in head["largest_batch"].items())
    for name, value in rows.items():
        out.add_row(name, value)
    return out


def table(rows: list[dict[str, Any]], title: str) -> Table:
    out = Table(title=title)
    out.add_column("forward", no_wrap=True)
    for column in ("ms", "x decode", "bound by", "op/byte", "GB", "GFLOP", "TFLOP/s", "ms talking"):
        out.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        out.add_row(
            row["point"],
            f"{row['ms']:.2f}",
            f"{row['ms'] / rows[0]['ms']:.2f}",
            row["bound"],
            f"{row['flops_per_byte']:.1f}",
            f"{row['gigabytes']:.2f}",
            f"{row['gigaflops']:,.1f}",
            f"{row['teraflops_per_second']:.2f}",
            f"{row['communication_ms']:.2f}",
        )
    return out


def plot(roofline: Roofline, made: list[Predicted], title: str) -> go.Figure:
    """Plot the roofline with every forward: memory-bound ones at the lower left, compute-bound at the upper right."""
    machine, dtype = roofline.machine, roofline.precision.compute
    balance = machine.balance(dtype)
    least = min(point.forward.intensity for point in made) / 2
    most = max(balance, *(point.forward.intensity for point in made)) * 2
    x = np.geomspace(least, most, 200).tolist()
    drawn = figure(
        axis("arithmetic intensity (operations per byte)", type="log", dtick=1),
        axis("performance (TFLOP/s per device)", type="log", dtick=1),
        height=460,
        title={"text": title, "font": {"size": 14}, "y": 0.98},
        margin={"l": 12, "r": 16, "t": 70, "b": 12},
    )
    roof = [min(i * machine.bytes_per_second, machine.flops_per_second(dtype)) / 1e12 for i in x]
    drawn.add_scatter(x=x, y=roof, mode="lines", name="roof", line={"color": GREY, "width": 2.4}, hoverinfo="skip")
    drawn.add_vline(x=balance, line={"color": GREY, "dash": "dot", "width": 1.2})
    for kind, colour in KINDS.items():
        of_kind = [point for point in made if point.kind == kind]
        if of_kind:
            drawn.add_scatter(
                x=[p.forward.intensity for p in of_kind],
                y=[p.forward.flops / p.forward.seconds / 1e12 for p in of_kind],
                mode="markers+text",
                name={"verify": "verify n", "batch": "decode, batch b", "prompt": "prompt of n"}.get(kind, kind),
                marker={"color": colour, "size": 10},
                text=[str(p.size) for p in of_kind] if kind != "decode" else ["decode"],
                textposition="bottom right" if kind != "batch" else "top left",
                textfont={"size": 11, "color": colour},
                hovertemplate="%{x:.1f} operations per byte, %{y:.1f} TFLOP/s<extra>" + kind + " %{text}</extra>",
            )
    return drawn


if __name__ == "__main__":
    launch(main)
