"""Compare published measurements with the cost model's predictions for the same models and machines.

python -m experiments.published
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import choice_of, instantiate
from experiments.common.cost_model import Reached
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.files.durable import write_json
from specdec.hardware import FREE, CostCurve, Machine, ModelShape, Precision, Roofline, load_config
from specdec.options import Count, Natural, Positive
from specdec.runs.provenance import provenance

GPT_FAST = "a100_80g"


@dataclass
class Decoding:
    """A row of `decoding` in conf/published.yaml."""

    target: str
    devices: Count
    weights: str
    tokens_per_second: Positive


@dataclass
class Speculation:
    """A row of `speculation` in conf/published.yaml."""

    method: str
    target: str
    hardware: str
    nodes: Count
    heads: Natural | None
    tau: Positive
    speedup: Positive


@dataclass
class Options:
    """Options as in conf/published.yaml."""

    fitted: Reached = field(default_factory=Reached)
    context: Natural = 100
    decoding: list[Decoding] = field(default_factory=list)
    speculation: list[Speculation] = field(default_factory=list)


@hydra.main(config_path=CONF, config_name="published", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Options)
    folder = Path(HydraConfig.get().runtime.output_dir)
    times = [decoded(row, o) for row in o.decoding]
    speedups = [speculated(row, o.context) for row in o.speculation]
    write_json(folder / "published.json", {"decoding": times, "speculation": speedups, "provenance": provenance()})
    stdout.print(decoding_table(times))
    stdout.print(speculation_table(speedups))
    stdout.print(f"run folder: {folder} (published.json)", soft_wrap=True, highlight=False)


def decoded(row: Decoding, o: Options) -> dict[str, Any]:
    """Return milliseconds per token: published, the lower bound, and the prediction with the fitted `reach`."""
    shape, precision = shape_of(row.target), Precision(weights=row.weights)
    limit = Roofline(shape, machine(GPT_FAST), precision, row.devices)
    fitted = Roofline(shape, machine(GPT_FAST), precision, row.devices, reach=o.fitted.shares())
    return {
        **asdict(row),
        "published_ms": 1e3 / row.tokens_per_second,
        "limit_ms": 1e3 * limit.seconds(1, 1, o.context),
        "fitted_ms": 1e3 * fitted.seconds(1, 1, o.context),
    }


def speculated(row: Speculation, context: int) -> dict[str, Any]:
    """Return the speedup predicted from the published τ and the step's cost at the roofline's limits; not fitted."""
    target = Roofline(shape_of(row.target), machine(row.hardware))
    heads: CostCurve = FREE
    if row.heads is not None:
        heads = Roofline(ModelShape.of_heads(row.heads, target.shape), target.machine)
    plain = target.seconds(1, 1, context)
    cost = (target.seconds(row.nodes, 1, context) + heads.seconds(1)) / plain
    return {**asdict(row), "step_cost": cost, "predicted": row.tau / cost, "published_step_cost": row.tau / row.speedup}


@cache
def shape_of(name: str) -> ModelShape:
    return ModelShape.of(load_config(name), name)


@cache
def machine(choice: str) -> Machine:
    made: Machine = instantiate(choice_of("hardware", choice, "hardware"))
    return made


def decoding_table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="decoding on A100 80 GB, batch 1: milliseconds per token")
    out.add_column("model", no_wrap=True)
    for column in ("devices", "weights", "published", "limit", "of it reached", "fitted", "error"):
        out.add_column(column, justify="right", no_wrap=True)
    for r in rows:
        out.add_row(
            r["target"],
            str(r["devices"]),
            r["weights"],
            f"{r['published_ms']:.2f}",
            f"{r['limit_ms']:.2f}",
            f"{r['limit_ms'] / r['published_ms']:.0%}",
            f"{r['fitted_ms']:.2f}",
            f"{r['fitted_ms'] / r['published_ms'] - 1:+.0%}",
        )
    return out


def speculation_table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="speculation in batch 1: speedup")
    for column in ("method", "model", "machine"):
        out.add_column(column, no_wrap=True)
    for column in ("nodes", "τ", "step cost, predicted", "published", "speedup, predicted", "published", "error"):
        out.add_column(column, justify="right")
    for r in rows:
        out.add_row(
            r["method"],
            r["target"],
            r["hardware"],
            str(r["nodes"]),
            f"{r['tau']:.2f}",
            f"{r['step_cost']:.2f}",
            f"{r['published_step_cost']:.2f}",
            f"{r['predicted']:.2f}x",
            f"{r['speedup']:.2f}x",
            f"{r['predicted'] / r['speedup'] - 1:+.0%}",
        )
    return out


if __name__ == "__main__":
    launch(main)
