"""Measure the project's ratios side by side in one process: a table, and a check against earlier ratios.

python -m experiments.ratios prompts=jsonl prompts.path=prompts.jsonl
python -m experiments.ratios write=benchmarks/ratios.json
python -m experiments.ratios check=benchmarks/ratios.json
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.assembly import assembled, closing, config
from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.resources import timed
from experiments.common.settings import settings, typed
from experiments.common.tables import identical, progress_bar, rate, ratio, stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.files.durable import write_json
from specdec.measure.batch_curve import BatchCurve, BatchSize
from specdec.measure.benchmark import Benchmark
from specdec.measure.overhead import share_outside_forwards
from specdec.measure.profiling import Footprint, Point, Profile, figures, fitting, profile
from specdec.measure.ratios import SIDES, Ratio, expectations, read_expectations, shortfalls
from specdec.measure.trials import BASE, OURS, Trial, speedup_over
from specdec.model.target import TargetModel
from specdec.notes import counted
from specdec.options import Count, Natural, NonNegative
from specdec.prompts.sets import PromptEncoder, first_turns
from specdec.runs.log import NoTracker, RunLog
from specdec.runs.provenance import machine
from specdec.runs.summary import Summary

REGRESSED = 1  # exit status


@dataclass
class OverBatch:
    """The option `batch`, as in conf/ratios.yaml."""

    sizes: list[Count]
    max_new_tokens: Count
    rounds: Count


@dataclass
class Forwards:
    """The option `forward`, as in conf/ratios.yaml."""

    prefix: Natural
    long_prefix: Natural
    verify: list[Count]
    rounds: Count
    buffer_mib: Count
    matrix: Count


@dataclass
class Ratios:
    """Options as in conf/ratios.yaml."""

    batch: OverBatch
    forward: Forwards
    compare: list[str]
    goals: dict[str, float]
    write: str | None
    tolerance: NonNegative
    check: str | None


@hydra.main(config_path=CONF, config_name="ratios", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options, chosen = settings(cfg), typed(cfg, Ratios)
    expected = read_expectations(chosen.check) if chosen.check else None
    if chosen.write and not Path(chosen.write).parent.is_dir():
        raise InputError("write", expected="a file in a folder there is", got=repr(chosen.write), fix="make the folder")
    benchmark, names, missing = assembled(cfg, options)
    decoder, target = benchmark.decoder, benchmark.decoder.target
    compared = pairs(chosen.compare, names["drafter"], [method.name for method in benchmark.references], missing)
    points = forwards(chosen.forward, target)
    fixed = replace(decoder, stop=StopRule(chosen.batch.max_new_tokens))
    prompts = batch_prompts(cfg, chosen.batch, target)
    over_batch = BatchCurve(prompts, fixed, chosen.batch.sizes, chosen.batch.rounds)
    folder = Path(HydraConfig.get().runtime.output_dir)
    log = RunLog(folder, NoTracker(), config(cfg, names))
    with closing(log), timed(target.device, options.exclusive, str(folder)):
        with progress_bar(chosen.forward.rounds, "forwards") as advance:
            ceilings = (chosen.forward.buffer_mib, chosen.forward.matrix)
            costs = profile(target, points, chosen.forward.rounds, options.seed, *ceilings, advance)
        with progress_bar(len(chosen.batch.sizes) * chosen.batch.rounds, "batch sizes") as advance:
            curve = over_batch.run(advance)
        measured, trials = texts(benchmark, log)
        outside = share_outside_forwards([t.ids for t in trials if t.repeat == 0], decoder)
    ratios = [
        *(Ratio(name, *speedup_over(other, method, trials)) for name, (method, other) in compared.items()),
        *of_forwards(costs, chosen.forward),
        *of_batches(curve),
        Ratio("outside the forwards / step", *outside, less=True),
    ]
    summary = measured.named(names, missing)
    of_ratios = {
        "ratios": [{**vars(one), "goal": chosen.goals.get(one.name)} for one in ratios],
        "forwards": figures(Footprint.of(target), costs),
        "batch_curve": [at.as_dict() for at in curve],
    }
    log.finish({**summary.as_dict(), **of_ratios})
    stdout.print(methods_table(summary, len(trials)))
    stdout.print(curve_table(curve, names["drafter"]))
    stdout.print(ratios_table(ratios, chosen.goals))
    stdout.print(f"run folder: {folder}", soft_wrap=True, highlight=False)
    if chosen.write:
        kept = expectations([one for one in ratios if one.name in chosen.goals], chosen.tolerance)
        command = ["python", "-m", "experiments.ratios", *HydraConfig.get().overrides.task]
        write_json(Path(chosen.write), {"machine": machine(), "command": command, "ratios": kept})
    if expected is not None and (lines := shortfalls(ratios, expected, missing)):
        print("\n".join(lines), file=sys.stderr)
        sys.exit(REGRESSED)


def pairs(
    names: Sequence[str], drafter: str, references: Sequence[str], missing: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Return the two methods of each ratio, with the names that `Benchmark` uses.

    Ratios with a method that cannot run here are left out.

    Args:
        names: the ratios, as "method / method".
        drafter: name of the drafter.
        references: names of the references.
        missing: names of references that cannot run here.

    Raises:
        InputError: a method that is not in this run.
    """
    methods = {BASE: BASE, drafter: OURS, **{name: name for name in [*references, *missing]}}
    sides = {name: tuple(name.split(SIDES)) for name in names}
    for name, methods_of in sides.items():
        if len(methods_of) != 2 or not set(methods_of) <= set(methods):
            known = ", ".join(methods)
            raise InputError(
                "compare", expected=f"'one{SIDES}another' of {known}", got=repr(name), fix="check the names"
            )
    return {name: (methods[a], methods[b]) for name, (a, b) in sides.items() if not {a, b} & set(missing)}


def forwards(f: Forwards, target: TargetModel) -> list[Point]:
    """Return the forwards whose ratios are reported.

    Raises:
        InputError: a forward longer than the context window.
    """
    sizes = [(1, f.prefix), (1, f.long_prefix), *((tokens, f.prefix) for tokens in f.verify)]
    window, points = target.context_window, [Point(tokens, prefix, batch=1) for tokens, prefix in sizes]
    if cut := [point for point in points if fitting([point.prefix], point.tokens, window) != [point.prefix]]:
        limit = f"forwards within the context window of {window} tokens"
        got = ", ".join(f"{point.prefix} + {point.tokens}" for point in cut)
        raise InputError("forward", expected=limit, got=got, fix="lower forward.prefix or forward.long_prefix")
    return points


def batch_prompts(cfg: DictConfig, o: OverBatch, target: TargetModel) -> list[list[int]]:
    """Return the first turns of prompts for the largest batch, sorted by length so that batches need little padding."""
    encoder = PromptEncoder.of(target)
    prompts = instantiate(cfg.prompts, limit=max(o.sizes, default=1))
    return sorted(first_turns(prompts, encoder, target.context_window, o.max_new_tokens), key=len)


def texts(benchmark: Benchmark, log: RunLog) -> tuple[Summary, list[Trial]]:
    """Run every method on the same prompts, in turns."""
    trials: list[Trial] = []
    with progress_bar(benchmark.turns) as advance:

        def collect(trial: Trial) -> None:
            trials.append(trial)
            advance(trial)

        return benchmark.run(log, collect), trials


def of_forwards(costs: Profile, f: Forwards) -> list[Ratio]:
    """Return the times of forwards over that of a decode step."""
    decode = Point(1, f.prefix, 1)
    verify = [
        Ratio(f"verify of {n} / decode of 1", *costs.ratio(Point(n, f.prefix, 1), decode), less=True) for n in f.verify
    ]
    long = costs.ratio(Point(1, f.long_prefix, 1), decode)
    return [*verify, Ratio(f"token at {f.long_prefix} / at {f.prefix}", *long, less=True)]


def of_batches(curve: Sequence[BatchSize]) -> list[Ratio]:
    """Return total tokens/s of plain decoding over that of the first batch size, with and without reading prompts."""
    first, ratios = curve[0], []
    for at in curve[1:]:
        name = f"batch {at.size}{SIDES}batch {first.size}"
        ratios.append(Ratio(name, *at.plain.faster_than(first.plain)))
        ratios.append(Ratio(f"{name}, after the prompts", *at.plain.decodes_faster_than(first.plain)))
    return ratios


def methods_table(s: Summary, texts: int) -> Table:
    """Show tokens/s of every method, and how many of its texts equal those of the drafter."""
    where = f"{s.target}, {s.device}, {s.dtype}, {counted(s.threads, 'thread')}"
    table = Table(
        title=f"{counted(s.prompts, 'prompt')}, {s.new_tokens} new tokens, temperature {s.temperature} ({where})"
    )
    table.add_column("method")
    table.add_column("tokens/s", justify="right")
    table.add_column(f"texts as {s.drafter}'s", justify="right")
    table.add_row(s.drafter, rate(s.tokens_per_second), "")
    table.add_row(BASE, rate(s.autoregressive_tokens_per_second), identical(s).partition(" ")[0])
    for rival in s.rivals:
        equal = "-" if rival.identical is None else f"{rival.identical}/{texts}"
        table.add_row(rival.name, rate(rival.tokens_per_second), equal)
    for name, why in s.missing_references.items():
        table.add_row(f"{name}: {why}")
    return table


def curve_table(curve: Sequence[BatchSize], drafter: str) -> Table:
    """Show total tokens/s by batch size, with the time of a step and the tokens per step."""
    table = Table(title="over batch size")
    for column in (
        "batch",
        f"{BASE}\ntokens/s",
        f"{drafter}\ntokens/s",
        f"{drafter} / {BASE}",
        "τ",
        "ms per step\nplain",
        "ms per step\ndrafted",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for at in curve:
        row = at.as_dict()
        table.add_row(
            str(at.size),
            f"{row['autoregressive_tokens_per_second']:.1f}",
            f"{row['tokens_per_second']:.1f}",
            ratio(row["speedup"], row["speedup_ci95"]),
            f"{row['tokens_per_step']:.2f}",
            f"{row['autoregressive_step_ms']:.1f}",
            f"{sum(row['phase_ms'].values()):.1f}",
        )
    return table


def ratios_table(ratios: Sequence[Ratio], goals: Mapping[str, float]) -> Table:
    table = Table(title="ratios")
    table.add_column("ratio", no_wrap=True)
    for column in ("measured [95 % interval]", "goal", "reached"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in ratios:
        row, goal = [one.name, ratio(one.value, one.interval)], goals.get(one.name)
        if goal is not None:
            row += [f"{'<=' if one.less else '>='} {goal}", "yes" if one.meets(goal) else "no"]
        table.add_row(*row)
    return table


if __name__ == "__main__":
    launch(main)
