"""Replay a recorded run with another tree, at another temperature or on another machine, without a model.

python -m experiments.bench drafter=medusa record=true
python -m experiments.simulate run=outputs/... tree=16 profile=outputs/.../profile.json
python -m experiments.simulate run=outputs/... tree=best hardware=a100_80g
python -m experiments.simulate -m run=outputs/... tree=4,8,16,32 temperature=0,0.5,1
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from drafters.adaptive.replayed import replay_adaptive
from experiments.common.components import instantiate
from experiments.common.cost_model import Modelled
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import stdout, within
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.protocols import AcceptanceRule
from specdec.errors import InputError
from specdec.files.durable import write_json
from specdec.hardware import DraftCost, MeasuredCurve, ModelShape, Roofline, load_config
from specdec.hardware.acceptance import counted
from specdec.options import Count, NonNegative
from specdec.replay.replay import Costs, Fixed, Replay, batches, by_category, replay, right_ranks, times
from specdec.replay.trace import Trace
from specdec.runs.provenance import provenance
from specdec.runs.read import Run
from specdec.trees.files import TREE_FILE, read_tree, write_tree
from specdec.trees.topology import Topology

ADAPTIVE = "steps are those that adaptive trees make at these very costs; a run times its own, and may draft less deep"
SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of nodes in the table of a search


@dataclass
class Options(Modelled):
    """Options as in conf/simulate.yaml."""

    run: str = ""
    tree: int | str | list[Any] | Topology = "recorded"
    temperature: NonNegative | None = None
    profile: str | None = None
    nodes: Count = 63


@hydra.main(config_path=CONF, config_name="simulate", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    o = typed(cfg, Options)
    trace = Trace.read(o.run)
    require_replayable(
        instantiate(cfg.acceptance), trace.origin.temperature if o.temperature is None else o.temperature
    )
    run = Run(Path(o.run))
    run.refresh()
    costs = costs_of(o, cfg, trace, run)
    folder = Path(HydraConfig.get().runtime.output_dir)
    figures: dict[str, Any] = {"run": o.run, "predicted": True}
    figures["tree"] = o.tree if isinstance(o.tree, int | str) else "by index paths"
    if o.tree == "best":
        trace, sizes, o.tree = best(trace, required(costs), o)
        stdout.print(sizes)
        figures |= {"searched_on": "every other batch of each category, predicted on those between"}
    if o.tree == "adaptive":
        tree, replayed = None, replay_adaptive(trace, required(costs), o.temperature)
    else:
        tree = named(o, trace)
        replayed = replay(trace, tree, o.temperature)
    figures |= predicted(replayed, costs)
    categories = {name: predicted(part, costs) for name, part in by_category(replayed).items()}
    if isinstance(tree, Topology):
        comment = shlex.join(["python", "-m", "experiments.simulate", *HydraConfig.get().overrides.task])
        source = {"target": trace.origin.target, "drafter": trace.origin.drafter, "recorded_in": o.run}
        write_tree(folder / TREE_FILE, comment, {**source, **figures, "paths": [list(path) for path in tree.paths]})
    write_json(folder / "summary.json", {**figures, "by_category": categories, "provenance": provenance()})
    stdout.print(table(figures, trace))
    if len(categories) > 1:
        stdout.print(category_table(categories))
    note = ADAPTIVE if o.tree == "adaptive" else exactness(replayed, run)
    stdout.print(note, highlight=False, soft_wrap=True)
    stdout.print(f"run folder: {folder}", soft_wrap=True, highlight=False)


def require_replayable(rule: AcceptanceRule, temperature: float) -> None:
    """Refuse a rule that cannot be replayed.

    Raises:
        InputError: a lossy rule, because its text was not recorded; or, at a temperature above 0, any rule but `exact`.
    """
    if not rule.lossless or (temperature > 0 and rule.name != "exact"):
        expected = "exact, or at temperature 0 any lossless rule; others write texts of which nothing was recorded"
        raise InputError("acceptance", expected=expected, got=rule.name, fix="run it with experiments.bench")


def required(costs: Costs | None) -> Costs:
    if costs is None:
        raise InputError("tree", expected="costs to choose by", got="none", fix="pass profile=... or hardware=...")
    return costs


def named(o: Options, trace: Trace) -> Topology | int | None:
    """Return the tree that the options name."""
    if o.tree == "recorded":
        return None if not trace.origin.tree else Topology.of(trace.origin.tree)
    if isinstance(o.tree, int):
        if not trace.ranked:
            return o.tree
        paths = counted(right_ranks(trace), o.tree)[-1][0]
        if not 1 <= o.tree <= len(paths):
            expected = f"1 to {len(paths)} nodes, of the paths that were ever right"
            raise InputError("tree", expected=expected, got=o.tree, fix="record more text, or lower it")
        return Topology.of([list(path) for path in paths], "tree")
    if isinstance(o.tree, Topology):
        return o.tree
    return read_tree(o.tree, "tree") if isinstance(o.tree, str) else Topology.of(o.tree, "tree")


def costs_of(o: Options, cfg: DictConfig, trace: Trace, run: Run) -> Costs | None:
    """Return the costs from a profile and the run's times outside its forwards, or from a roofline; None without both.

    Args:
        o: the options.
        cfg: the composed config.
        trace: the recorded run.
        run: its run folder.
    """
    if o.profile is not None:
        return measured(o.profile, trace, run)
    if "hardware" not in cfg:
        return None
    machine = instantiate(cfg.hardware)
    shape = ModelShape.of(load_config(trace.origin.target), trace.origin.target)
    shared = (machine, o.precision.on(machine), o.devices, o.link, o.reach.shares())
    target = Roofline(shape, *shared)
    target.require_fit(trace.origin.batch_size, max(t.prompt_tokens + len(t.tokens) for t in trace.texts))
    weights = trace.origin.parameters
    draft = DraftCost(once=Roofline(ModelShape.of_heads(weights, shape), *shared)) if weights else DraftCost()
    prompts = {
        key: target.prefill(max(trace.texts[i].prompt_tokens for i in batch), len(batch)).seconds
        for key, batch in batches(trace).items()
    }
    return Costs(target, draft, prompt=prompts)


def measured(profile: str, trace: Trace, run: Run) -> Costs:
    """Return measured costs.

    Forwards take the times of the profile. Drafting, accepting and committing take the times of the recorded run.
    Reading the prompts takes the rest of the run's time.
    """
    curve = MeasuredCurve(profile)
    if curve.target != trace.origin.target:
        fix = "profile the run's target"
        raise InputError("profile", expected=f"one of {trace.origin.target}", got=curve.target, fix=fix)
    phases = run.figures.phase_ms
    if not phases or not run.generations:
        raise InputError("run", expected="its steps and texts", got="a folder without", fix="record it again")
    spent = {(g["prompt"], g["turn"], g["repeat"]): g["seconds"]["speculative"] for g in run.generations}
    stepped = {
        (key.prompt, key.turn, key.repeat): sum(sum(r.ms.values()) / r.live for r in records) / 1e3
        for key, records in run.texts.items()
    }
    prompts = {}
    for number, batch in batches(trace).items():
        keys = [(t.prompt, t.turn, t.repeat) for t in (trace.texts[i] for i in batch)]
        prompts[number] = max(0.0, sum(spent[key] - stepped[key] for key in keys))
    draft, rest = DraftCost(once=Fixed(phases["draft"] / 1e3)), (phases["accept"] + phases["commit"]) / 1e3
    return Costs(curve, draft, rest, prompts, padded=not curve.skips_padding)


def best(trace: Trace, costs: Costs, o: Options) -> tuple[Trace, Table, Topology | int]:
    """Search the best tree on one half of the texts of every category, and measure it on the other half."""
    category = {text.batch: text.category for text in reversed(trace.texts)}
    half = {batch: i % 2 for i, batch in enumerate(sorted(category, key=lambda batch: (category[batch], batch)))}
    halves = [Trace(trace.origin, [text for text in trace.texts if half[text.batch] == h]) for h in (0, 1)]
    if not halves[1].texts:
        raise InputError("run", expected="two batches or more, to search and to judge", got="one", fix="record more")
    found: dict[int, tuple[float, float, Topology | int]] = {}
    for tree in candidates(halves[0], o.nodes):
        replayed = replay(halves[0], tree, o.temperature)
        speed = times(replayed, costs).tokens_per_second
        size = tree if isinstance(tree, int) else tree.nodes - 1
        found[size] = max(found.get(size, (0.0, 0.0, tree)), (speed, replayed.tau[0], tree), key=lambda f: f[0])
    out = Table(title="the best tree of each size, on the texts that were searched")
    for column in ("nodes", "depth", "τ", "tokens/s"):
        out.add_column(column, justify="right")
    for size, (speed, tau, tree) in sorted(found.items()):
        if size in SHOWN:
            depth = str(tree.depth) if isinstance(tree, Topology) else "-"
            out.add_row(str(size), depth, f"{tau:.3f}", f"{speed:.1f}")
    return halves[1], out, max(found.values(), key=lambda f: f[0])[2]


def candidates(trace: Trace, nodes: int) -> list[Topology | int]:
    """Return the trees to try: every size; if the drafter ranks every depth, the paths that were right most often."""
    if not trace.ranked:
        return list(range(1, nodes + 1))
    lists = counted(right_ranks(trace), nodes)
    return [Topology.of([list(p) for p in paths[:size]]) for paths, _ in lists for size in range(1, len(paths) + 1)]


def predicted(replayed: Replay, costs: Costs | None) -> dict[str, Any]:
    tau, interval = replayed.tau
    figures: dict[str, Any] = {
        "steps": float(replayed.steps.sum()),
        "tokens": int(replayed.tokens.sum()),
        "tokens_per_step": tau,
        "tokens_per_step_ci95": list(interval) if interval else None,
        "nodes_per_step": replayed.nodes_per_step,
        "exact": replayed.exact,
    }
    if costs is None:
        return figures
    spent = times(replayed, costs)
    speedup, of = spent.speedup
    figures |= {
        "step_ms": 1e3 * float((spent.seconds - spent.prompts).sum() / replayed.forwards),
        "tokens_per_second": spent.tokens_per_second,
        "autoregressive_tokens_per_second": spent.plain_tokens_per_second,
        "speedup": speedup,
        "speedup_ci95": list(of) if of else None,
    }
    return figures


def table(figures: dict[str, Any], trace: Trace) -> Table:
    origin, tree = trace.origin, figures["tree"]
    out = Table(title=f"predicted: {origin.drafter} on {origin.target}, tree={tree}", show_header=False)
    out.add_column()
    out.add_column(justify="right")
    out.add_row("tokens per step τ", within(figures["tokens_per_step"], figures["tokens_per_step_ci95"], ".3f"))
    out.add_row("drafted nodes per step", f"{figures['nodes_per_step']:.1f}")
    if "speedup" in figures:
        out.add_row("ms per step", f"{figures['step_ms']:.2f}")
        out.add_row("tokens/s", f"{figures['tokens_per_second']:.1f}")
        out.add_row("autoregressive tokens/s", f"{figures['autoregressive_tokens_per_second']:.1f}")
        out.add_row("speedup", within(figures["speedup"], figures["speedup_ci95"], ".3f"))
    return out


def category_table(categories: dict[str, dict[str, Any]]) -> Table:
    out = Table(title="by category")
    for column in ("category", "τ", "nodes", *(["speedup"] if "speedup" in next(iter(categories.values())) else [])):
        out.add_column(column, justify="left" if column == "category" else "right")
    for name, figures in categories.items():
        speedup = [f"{figures['speedup']:.2f}x"] if "speedup" in figures else []
        out.add_row(name, f"{figures['tokens_per_step']:.2f}", f"{figures['nodes_per_step']:.1f}", *speedup)
    return out


def exactness(replayed: Replay, run: Run) -> str:
    """Say how exact the prediction is."""
    if replayed.exact:
        return "tokens per step are exact: greedy text is the target's own whatever is drafted"
    origin = replayed.trace.origin
    note = "tokens per step are an approximation: past a token that the recorded text lacks, nothing was recorded"
    own = run.figures.tokens_per_step
    if own and origin.tree and (at := origin.temperature) > 0:
        again = replay(replayed.trace, None, at).tau[0]
        note += f"; with the run's own tree and temperature it gives {again:.3f}, the run made {own:.3f}"
    return note


if __name__ == "__main__":
    launch(main)
