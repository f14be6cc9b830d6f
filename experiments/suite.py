"""Every ratio that matters, measured side by side in one process: a table, and a check against earlier ones.

python -m experiments.suite prompts=jsonl prompts.path=prompts.jsonl
python -m experiments.suite write=benchmarks/ratios.json
python -m experiments.suite check=benchmarks/ratios.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from experiments.bench import closing, config
from experiments.entry import CONF, launch, one_line_errors
from experiments.settings import settings, typed
from experiments.tables import identical, progress_bar, stdout
from specdec.batch_curve import BatchSize, batch_curve
from specdec.benchmark import BASE, OURS, Benchmark, Trial, describe, speedup_over
from specdec.errors import InputError
from specdec.overhead import share_outside_forwards
from specdec.profiling import Point, Profile, figures, profile
from specdec.prompts import PromptEncoder
from specdec.ratios import SIDES, Ratio, expectations, read_expectations, shortfalls
from specdec.reference import runnable
from specdec.runlog import NoTracker, RunLog, machine, provenance, write_json

REGRESSED = 1  # exit status


@dataclass
class OverBatch:
    sizes: list[int]
    max_new_tokens: int
    rounds: int


@dataclass
class Forwards:
    prefix: int
    long_prefix: int
    verify: list[int]
    rounds: int
    buffer_mib: int
    matrix: int


@dataclass
class Suite:
    """See conf/suite.yaml."""

    batch: OverBatch
    forward: Forwards
    compare: list[str]
    targets: dict[str, float]
    write: str | None
    tolerance: float
    check: str | None


@hydra.main(config_path=CONF, config_name="suite", version_base="1.3")
@one_line_errors()
def main(cfg: DictConfig) -> None:
    options, suite = settings(cfg), typed(cfg, Suite)
    expected = read_expectations(suite.check) if suite.check else None
    if suite.write and not Path(suite.write).parent.is_dir():
        raise InputError("write", expected="a file in a folder there is", got=repr(suite.write), fix="make the folder")
    target = instantiate(cfg.target)
    references, missing = runnable(instantiate(cfg.reference.methods, _convert_="all"), target, options.sampling())
    benchmark = Benchmark(
        drafter=instantiate(cfg.drafter, _convert_="all"),
        verifier=instantiate(cfg.verifier, target=target),
        rule=instantiate(cfg.acceptance),
        prompts=instantiate(cfg.prompts),
        sampling=options.sampling(),
        stop=options.stop_rule(target),
        repeats=options.repeats,
        seed=options.seed,
        references=references,
    )
    benchmark.check()
    choices = HydraConfig.get().runtime.choices
    names = {"target": target.name, "drafter": choices["drafter"], "verifier": choices["verifier"]}
    compared = pairs(suite.compare, names["drafter"], [method.name for method in references], list(missing))
    folder = Path(HydraConfig.get().runtime.output_dir)
    log = RunLog(folder, NoTracker(), config(cfg, names))
    with closing(log):
        costs = forwards(benchmark, suite.forward)
        curve = over_batch(benchmark, cfg, suite.batch)
        summary, trials = texts(benchmark, log)
        parts = (benchmark.drafter, benchmark.verifier, benchmark.rule, benchmark.sampling, benchmark.stop)
        outside = share_outside_forwards([t.ids for t in trials if t.repeat == 0], *parts)
    ratios = [
        *(Ratio(name, *speedup_over(other, method, trials)) for name, (method, other) in compared.items()),
        *of_forwards(costs, suite.forward),
        *(Ratio(f"batch {at.size} / batch {curve[0].size}", *at.plain.faster_than(curve[0].plain)) for at in curve[1:]),
        Ratio("outside the forwards / step", *outside, less=True),
    ]
    summary = {
        **describe(benchmark, names),
        **summary,
        "missing_references": missing,
        "ratios": [{**vars(ratio), "target": suite.targets.get(ratio.name)} for ratio in ratios],
        "forwards": figures(target, costs),
        "batch_curve": [at.as_dict() for at in curve],
    }
    log.finish(summary)
    stdout.print(methods_table(summary, len(trials)))
    stdout.print(curve_table(curve, names["drafter"]))
    stdout.print(ratios_table(ratios, suite.targets))
    stdout.print(f"run folder: {folder}", soft_wrap=True, highlight=False)
    if suite.write:
        kept = expectations([ratio for ratio in ratios if ratio.name in suite.targets], suite.tolerance)
        write_json(Path(suite.write), {"machine": machine(), "command": provenance()["command"], "ratios": kept})
    if expected is not None:
        lines = shortfalls(ratios, expected, missing)
        print("\n".join(lines) or f"every ratio is within its bound of {suite.check}", file=sys.stderr)
        if lines:
            sys.exit(REGRESSED)


def pairs(
    names: Sequence[str], drafter: str, references: Sequence[str], missing: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """The two methods of each ratio, as `Benchmark` calls them; without those that cannot run here.

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


def forwards(benchmark: Benchmark, f: Forwards) -> Profile:
    """The few forwards whose ratios are reported, taking turns."""
    sizes = [(1, f.prefix), (1, f.long_prefix), *((tokens, f.prefix) for tokens in f.verify)]
    points = [Point(tokens, prefix, batch=1) for tokens, prefix in sizes]
    with progress_bar(f.rounds, "forwards") as advance:
        sizes_of_ceilings = (f.buffer_mib, f.matrix)
        return profile(benchmark.verifier.target, points, f.rounds, benchmark.seed, *sizes_of_ceilings, advance)


def over_batch(benchmark: Benchmark, cfg: DictConfig, o: OverBatch) -> list[BatchSize]:
    """The curve over batch size, on as many prompts as the largest batch."""
    prompts = instantiate(cfg.prompts, limit=max(o.sizes))
    encoder = PromptEncoder(benchmark.verifier.target.tokenizer)  # type: ignore[arg-type]
    ids = [encoder.encode(prompt.turns[:1], []) for prompt in prompts]
    parts = (benchmark.drafter, benchmark.verifier, benchmark.rule, benchmark.sampling)
    with progress_bar(len(o.sizes) * o.rounds, "batch sizes") as advance:
        return batch_curve(ids, *parts, o.max_new_tokens, o.sizes, o.rounds, advance)


def texts(benchmark: Benchmark, log: RunLog) -> tuple[dict[str, Any], list[Trial]]:
    """Every method on the same prompts, taking turns."""
    trials: list[Trial] = []
    turns = sum(len(prompt.turns) for prompt in benchmark.prompts) * benchmark.repeats
    with progress_bar(turns) as advance:

        def collect(trial: Trial) -> None:
            trials.append(trial)
            advance(trial)

        return benchmark.run(log, collect), trials


def of_forwards(costs: Profile, f: Forwards) -> list[Ratio]:
    """Times of forwards over that of a decode step."""
    decode = Point(1, f.prefix, 1)
    verify = [
        Ratio(f"verify of {n} / decode of 1", *costs.ratio(Point(n, f.prefix, 1), decode), less=True) for n in f.verify
    ]
    long = costs.ratio(Point(1, f.long_prefix, 1), decode)
    return [*verify, Ratio(f"token at {f.long_prefix} / at {f.prefix}", *long, less=True)]


def methods_table(s: Mapping[str, Any], texts: int) -> Table:
    """Tokens/s of every method, and how many of its texts equal those of the drafter."""
    where = f"{s['target']}, {s['device']}, {s['dtype']}, {s['threads']} threads"
    table = Table(
        title=f"{s['prompts']} prompts, {s['new_tokens']} new tokens, temperature {s['temperature']} ({where})"
    )
    table.add_column("method")
    table.add_column("tokens/s", justify="right")
    table.add_column(f"texts as {s['drafter']}'s", justify="right")
    table.add_row(s["drafter"], f"{s['tokens_per_second']:.1f}", "")
    table.add_row(BASE, f"{s['autoregressive_tokens_per_second']:.1f}", identical(s).partition(" ")[0])
    for method in [s["reference"], *s["other_references"]] if s["reference"] else []:
        equal = "-" if method["identical"] is None else f"{method['identical']}/{texts}"
        table.add_row(method["name"], f"{method['tokens_per_second']:.1f}", equal)
    for name, why in s["missing_references"].items():
        table.add_row(f"{name}: {why}")
    return table


def curve_table(curve: Sequence[BatchSize], drafter: str) -> Table:
    """Total tokens/s over batch size, and what makes them: the time of a step, and the tokens it brings."""
    table = Table(title="over batch size")
    for column in (
        "batch",
        f"{BASE}\ntokens/s",
        "over the first\n(after the prompts)",
        f"{drafter}\ntokens/s",
        f"{drafter} / {BASE}",
        "τ",
        "ms per step\nplain",
        "ms per step\ndrafted",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for at in curve:
        row = at.as_dict()
        grown, decoding = at.plain.faster_than(curve[0].plain)[0], at.plain.decodes_faster_than(curve[0].plain)[0]
        table.add_row(
            str(at.size),
            f"{row['autoregressive_tokens_per_second']:.1f}",
            f"{grown:.2f}x ({decoding:.2f}x)",
            f"{row['tokens_per_second']:.1f}",
            ratio_text(row["speedup"], row["speedup_ci95"]),
            f"{row['tokens_per_step']:.2f}",
            f"{row['autoregressive_step_ms']:.1f}",
            f"{sum(row['phase_ms'].values()):.1f}",
        )
    return table


def ratios_table(ratios: Sequence[Ratio], targets: Mapping[str, float]) -> Table:
    table = Table(title="ratios")
    table.add_column("ratio", no_wrap=True)
    for column in ("measured [95 % interval]", "target", "reached"):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio in ratios:
        row, target = [ratio.name, ratio_text(ratio.value, ratio.interval)], targets.get(ratio.name)
        if target is not None:
            row += [f"{'<=' if ratio.less else '>='} {target}", "yes" if ratio.meets(target) else "no"]
        table.add_row(*row)
    return table


def ratio_text(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


if __name__ == "__main__":
    launch(main)
