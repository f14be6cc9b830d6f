"""Predict where speculation pays: the best tree, its speedup and its throughput by batch and context.

python -m experiments.plan target=llama2_7b hardware=a100_80g draft.model=llama_68m
python -m experiments.plan target=llama3_70b hardware=h100_sxm devices=8 draft.model=llama3_1b most_ms=20
python -m experiments.plan target=smollm2_135m hardware=this hardware.file=outputs/.../profile.json \
    measured=drafters/weights/smollm2_135m/medusa/tree.yaml draft.heads=31e6 contexts=[512,2048,8192]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import instantiate
from experiments.common.cost_model import Modelled, where
from experiments.common.entry import CONF, stderr
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.pictures.plan import picture
from experiments.sweeps.launch import launch
from specdec.errors import InputError
from specdec.files.checked import read_yaml
from specdec.files.durable import write_json
from specdec.hardware import CostCurve, DraftCost, MeasuredCurve, ModelShape, Roofline, load_config
from specdec.hardware.acceptance import Acceptances
from specdec.hardware.planning import Acceptance, Plan, Planner
from specdec.options import Count, Natural, NonNegative, Positive, Range, Share
from specdec.runs.provenance import provenance
from specdec.runs.read import Run

Grid = dict[tuple[int, int], Plan]  # by (batch, context); pairs that do not fit into memory are missing


@dataclass
class Draft:
    """The option `draft`, as in conf/plan.yaml."""

    model: str | None = None
    heads: Positive | None = None
    devices: Count = 1


@dataclass
class Options(Modelled):
    """Options as in conf/plan.yaml."""

    draft: Draft = field(default_factory=Draft)
    rates: list[list[Share]] = field(default_factory=list)
    depth: Annotated[int, Range(1, 1000)] = 8
    measured: str | None = None
    profile: str | None = None
    nodes: Count = 64
    batches: list[Count] = field(default_factory=list)
    contexts: list[Natural] = field(default_factory=list)
    worth: NonNegative = 1.05
    most_ms: Positive | None = None


@hydra.main(config_path=CONF, config_name="plan", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Options)
    target = o.roofline(cfg.target, instantiate(cfg.hardware))
    target.require_fit()
    draft = drafter(o, target)
    verify: CostCurve = MeasuredCurve(o.profile) if o.profile else target
    planner = Planner(acceptance(o), verify, cost(draft), o.nodes)
    contexts = within(o.contexts, target.shape.window)
    grid = {
        (batch, context): planner.best(batch, context)
        for context in contexts
        for batch in sorted(set(o.batches))
        if fits(target, draft, batch, context + o.nodes + 1)
    }
    if not grid:
        target.require_fit(min(o.batches), min(contexts))
        raise InputError("memory", expected="room for the drafter too", got="none", fix="use more devices")
    title = f"{where(target)}, {drafts(o)}"
    ends = {str(context): pays_up_to(grid, context, o.worth) for context in contexts}
    levels = [served(grid, context, o.most_ms, o.devices) for context in contexts] if o.most_ms else []
    folder = Path(HydraConfig.get().runtime.output_dir)
    result = {
        "what": title,
        "predicted": True,
        "acceptance": [list(rates) for rates in planner.acceptance],
        "worth": o.worth,
        "pays_up_to_batch": ends,
        "service_level": levels,
        "points": [figures(plan, o.devices) for plan in grid.values()],
        "provenance": provenance(),
    }
    write_json(folder / "plan.json", result)
    picture(grid, verify, o.nodes, title).write_html(folder / "plan.html", include_plotlyjs=True)
    stdout.print(speedups(grid, contexts, sorted(set(o.batches)), ends, title))
    stdout.print(details(grid, contexts[0], o.devices))
    if levels:
        stdout.print(service(levels, o.most_ms or 0))
    stdout.print("predictions: acceptances are taken as given, and times are the cost model's", highlight=False)
    stdout.print(f"run folder: {folder} (plan.json, plot: plan.html)", soft_wrap=True, highlight=False)


def acceptance(o: Options) -> Acceptance:
    """Return the acceptance rates: those of the options, or measured ones.

    Raises:
        InputError: `measured` is neither a run that drafted nor a file with acceptance rates.
    """
    if o.measured is None:
        return o.rates * o.depth if len(o.rates) == 1 else o.rates
    file = Path(o.measured)
    if file.is_dir():
        run = Run(file)
        run.refresh()
        return Acceptances.of_steps(run.steps).rates()
    try:
        found = read_yaml(file)
        return [list(map(float, rates)) for rates in found["accuracies"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "the folder of a run, or tree.yaml of experiments.build_tree"
        raise InputError("measured", expected=expected, got=f"{file} ({error!r})", fix="name one") from error


def drafter(o: Options, target: Roofline) -> Roofline | None:
    """Return the roofline of the draft model, None without one.

    Raises:
        InputError: a model and heads at once.
    """
    d, machine = o.draft, target.machine
    if d.model is not None and d.heads is not None:
        raise InputError("draft", expected="a model or heads", got="both", fix="remove one")
    if d.model is not None:
        shape = ModelShape.of(load_config(d.model), d.model)
    elif d.heads is not None:
        shape = ModelShape.of_heads(int(d.heads), target.shape)
    else:
        return None
    return Roofline(shape, machine, target.precision, d.devices, o.link, target.reach)


def cost(draft: Roofline | None) -> DraftCost:
    if draft is None:
        return DraftCost()
    return DraftCost(level=draft) if draft.shape.attention else DraftCost(once=draft)


def fits(target: Roofline, draft: Roofline | None, batch: int, context: int) -> bool:
    needed = sum(r.weight_bytes + r.cache_bytes(batch, context) for r in (target, draft) if r is not None)
    return needed <= target.machine.bytes


def within(contexts: Sequence[int], window: int | None) -> list[int]:
    """Return the contexts that fit the model's window, and print those that do not."""
    kept = sorted({context for context in contexts if window is None or context <= window})
    if not kept:
        expected = f"one within the model's window of {window:,} tokens"
        raise InputError("contexts", expected=expected, got=list(contexts), fix="add a shorter one")
    if longer := sorted(set(contexts) - set(kept)):
        stderr.print(f"left out: contexts of {', '.join(map(str, longer))}, longer than the window of {window} tokens")
    return kept


def pays_up_to(grid: Grid, context: int, worth: float) -> int | None:
    """Return the largest batch before the first one that does not pay, or None if the smallest does not pay."""
    of_context = [plan for (_, c), plan in sorted(grid.items()) if c == context]
    paying = list(takewhile(lambda plan: plan.speedup >= worth, of_context))
    return paying[-1].batch if paying else None


def served(grid: Grid, context: int, most_ms: float, devices: int) -> dict[str, Any]:
    """Return the largest tokens/s per device, plain and drafted, within a service level.

    Args:
        grid: the plans.
        context: tokens before the forward.
        most_ms: largest number of milliseconds per token.
        devices: number of devices.
    """
    of_context = [plan for (_, c), plan in grid.items() if c == context]
    plain = [p for p in of_context if 1e3 * p.plain_seconds <= most_ms]
    drafted = [p for p in of_context if 1e3 * p.seconds / p.tokens_per_step <= most_ms]
    best = max(plain, key=lambda p: p.plain_tokens_per_second, default=None)
    most = max(drafted, key=lambda p: p.tokens_per_second, default=None)
    return {
        "context": context,
        "plain_batch": best and best.batch,
        "plain_tokens_per_second_per_device": best and best.plain_tokens_per_second / devices,
        "batch": most and most.batch,
        "tokens_per_second_per_device": most and most.tokens_per_second / devices,
    }


def figures(plan: Plan, devices: int) -> dict[str, Any]:
    return {
        "batch": plan.batch,
        "context": plan.context,
        "speedup": plan.speedup,
        "nodes": len(plan.paths),
        "levels": plan.levels,
        "tokens_per_step": plan.tokens_per_step,
        "step_ms": 1e3 * plan.seconds,
        "draft_ms": 1e3 * plan.draft_seconds,
        "plain_step_ms": 1e3 * plan.plain_seconds,
        "tokens_per_second_per_device": plan.tokens_per_second / devices,
        "plain_tokens_per_second_per_device": plan.plain_tokens_per_second / devices,
        "paths": [list(path) for path in plan.paths],
    }


def drafts(o: Options) -> str:
    if o.draft.model:
        return f"drafts of {o.draft.model}"
    return f"heads of {o.draft.heads:.3g} parameters" if o.draft.heads else "drafts for nothing"


def speedups(
    grid: Grid, contexts: Sequence[int], batches: Sequence[int], ends: dict[str, int | None], title: str
) -> Table:
    out = Table(title=f"{title}\nspeedup of the best tree (its drafted nodes); blank: does not fit")
    out.add_column("batch", justify="right")
    for context in contexts:
        out.add_column(f"{context:,} tokens", justify="right", no_wrap=True)
    for batch in batches:
        plans = [grid.get((batch, context)) for context in contexts]
        out.add_row(str(batch), *(f"{p.speedup:.2f}x ({len(p.paths)})" if p else "" for p in plans))
    out.add_section()
    out.add_row("pays up to", *(ending(grid, context, ends[str(context)], batches) for context in contexts))
    return out


def ending(grid: Grid, context: int, end: int | None, batches: Sequence[int]) -> str:
    fitting = [batch for batch, c in grid if c == context]
    if end is None:
        return "nowhere" if fitting else ""
    if end < max(fitting):
        return str(end)
    return f"{end}, then memory" if end < max(batches) else f"{end} or more"


def details(grid: Grid, context: int, devices: int) -> Table:
    out = Table(title=f"behind {context:,} tokens; tokens/s per device")
    out.add_column("batch", justify="right")
    for column in ("tree", "τ", "plain step ms", "step ms", "of it drafting", "plain tokens/s", "tokens/s"):
        out.add_column(column, justify="right", no_wrap=True)
    for (_, c), p in grid.items():
        if c == context:
            out.add_row(
                str(p.batch),
                " ".join(map(str, p.levels)) or "-",
                f"{p.tokens_per_step:.2f}",
                f"{1e3 * p.plain_seconds:.2f}",
                f"{1e3 * p.seconds:.2f}",
                f"{p.draft_seconds / p.seconds:.0%}",
                f"{p.plain_tokens_per_second / devices:,.0f}",
                f"{p.tokens_per_second / devices:,.0f}",
            )
    return out


def service(levels: Sequence[dict[str, Any]], most_ms: float) -> Table:
    out = Table(title=f"most tokens/s per device at {most_ms:g} ms per token or less")
    out.add_column("context", justify="right")
    for column in ("plain batch", "plain tokens/s", "batch", "tokens/s"):
        out.add_column(column, justify="right")
    for level in levels:
        values = list(level.values())
        out.add_row(f"{values[0]:,}", *("-" if value is None else f"{value:,.0f}" for value in values[1:]))
    return out


if __name__ == "__main__":
    launch(main)
