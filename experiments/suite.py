"""Every ratio that matters, measured side by side in one process: a table, `suite.json`, and a regression check.

python -m experiments.suite prompts=jsonl prompts.path=prompts.jsonl
python -m experiments.suite write=benchmarks/ratios.json
python -m experiments.suite check=benchmarks/ratios.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from experiments.bench import closing, config
from experiments.entry import CONF, launch, one_line_errors, stderr
from experiments.settings import settings
from experiments.tables import identical, progress_bar, stdout
from specdec.batch_curve import BatchSize, batch_curve
from specdec.benchmark import BASE, OURS, Benchmark, Trial, describe, speedup_over, tokens_per_second
from specdec.errors import InputError
from specdec.overhead import share_outside_forwards
from specdec.profiling import Point, Profile, figures, profile
from specdec.prompts import PromptEncoder
from specdec.ratios import Ratio, expectations, read_expectations, shortfalls
from specdec.reference import runnable
from specdec.runlog import NoTracker, RunLog, machine, provenance, write_json

REGRESSED = 1  # exit status


@hydra.main(config_path=CONF, config_name="suite", version_base="1.3")
@one_line_errors()
def main(cfg: DictConfig) -> None:
    options = settings(cfg)
    expected = read_expectations(cfg.check) if cfg.check else None
    if cfg.write and not Path(cfg.write).parent.is_dir():
        raise InputError("write", expected="a file in a folder that exists", got=repr(cfg.write), fix="make the folder")
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
    folder = Path(HydraConfig.get().runtime.output_dir)

    costs = forwards(benchmark, cfg)
    curve = over_batch(benchmark, cfg)
    trials: list[Trial] = []
    log = RunLog(folder, NoTracker(), config(cfg, names))
    turns = sum(len(prompt.turns) for prompt in benchmark.prompts) * options.repeats
    with closing(log), progress_bar(turns) as advance:

        def collect(trial: Trial) -> None:
            trials.append(trial)
            advance(trial)

        summary = {**describe(benchmark, names), **benchmark.run(log, collect), "missing_references": missing}
        parts = (benchmark.drafter, benchmark.verifier, benchmark.rule, benchmark.sampling, benchmark.stop)
        outside = share_outside_forwards([t.ids for t in trials if t.repeat == 0], *parts)
    log.finish(summary)

    ratios = [
        *of_methods(names["drafter"], trials, [reference.name for reference in references]),
        *of_forwards(costs, cfg),
        *of_batches(curve),
        Ratio("outside the forwards / step", *outside, less=True),
    ]
    report = {
        "summary": summary,
        "ratios": [{**vars(ratio), "target": cfg.targets.get(ratio.name)} for ratio in ratios],
        "forwards": figures(target, costs),
        "batch_curve": [at.as_dict() for at in curve],
        "provenance": provenance(),
    }
    write_json(folder / "suite.json", report)
    where = f"{target.name}, {summary['device']}, {summary['dtype']}, {summary['threads']} threads"
    stdout.print(methods_table(names["drafter"], summary, trials, where))
    stdout.print(curve_table(names["drafter"], report["batch_curve"]))
    stdout.print(ratios_table(ratios, cfg.targets))
    stdout.print(f"run folder: {folder} (suite.json)", soft_wrap=True, highlight=False)
    if cfg.write:
        command = provenance()["command"]
        content = {"machine": machine(), "command": command, "ratios": expectations(ratios, cfg.tolerance)}
        write_json(Path(cfg.write), content)
    if expected is not None:
        for line in (lines := shortfalls(ratios, expected, missing)):
            print(line, file=sys.stderr)
        if lines:
            sys.exit(REGRESSED)


def forwards(benchmark: Benchmark, cfg: DictConfig) -> Profile:
    """The few forwards whose ratios are reported, taking turns."""
    f = cfg.forward
    sizes = [(1, f.prefix), (1, f.long_prefix), *((tokens, f.prefix) for tokens in f.verify)]
    points = [Point(tokens, prefix, batch=1) for tokens, prefix in sizes]
    with progress_bar(f.rounds, "forwards") as advance:
        return profile(benchmark.verifier.target, points, f.rounds, benchmark.seed, on_round=advance)


def over_batch(benchmark: Benchmark, cfg: DictConfig) -> list[BatchSize]:
    """The curve over batch size, on as many prompts as the largest batch."""
    prompts = instantiate(cfg.prompts, limit=max(cfg.batch.sizes))
    encoder = PromptEncoder(benchmark.verifier.target.tokenizer)  # type: ignore[arg-type]
    ids = [encoder.encode(prompt.turns[:1], []) for prompt in prompts]
    parts = (benchmark.drafter, benchmark.verifier, benchmark.rule, benchmark.sampling)
    limits = (cfg.batch.max_new_tokens, list(cfg.batch.sizes), cfg.batch.rounds)
    with progress_bar(len(cfg.batch.sizes) * cfg.batch.rounds, "batches") as advance:
        return batch_curve(ids, *parts, *limits, on_size=advance)


def of_methods(drafter: str, trials: Sequence[Trial], references: Sequence[str]) -> list[Ratio]:
    """Tokens/s of our loop without drafts and with them over everything else, and of the two uses of a draft model."""
    ratios = [Ratio(f"{drafter} / {BASE}", *speedup_over(BASE, OURS, trials))]
    for name in references:
        if name != "draft model":
            ratios.append(Ratio(f"{BASE} / {name}", *speedup_over(name, BASE, trials)))
            ratios.append(Ratio(f"{drafter} / {name}", *speedup_over(name, OURS, trials)))
    if {"draft model", "assisted generation"} <= set(references):
        with_draft = speedup_over("assisted generation", "draft model", trials)
        ratios.append(Ratio("draft model / assisted generation", *with_draft))
    return ratios


def of_forwards(costs: Profile, cfg: DictConfig) -> list[Ratio]:
    """Times of forwards over that of a decode step."""
    f, decode = cfg.forward, Point(1, cfg.forward.prefix, 1)
    verify = [
        Ratio(f"verify of {n} / decode of 1", *costs.ratio(Point(n, f.prefix, 1), decode), less=True) for n in f.verify
    ]
    long = costs.ratio(Point(1, f.long_prefix, 1), decode)
    return [*verify, Ratio(f"token at {f.long_prefix} / at {f.prefix}", *long, less=True)]


def of_batches(curve: Sequence[BatchSize]) -> list[Ratio]:
    """Total tokens/s without drafts over those of batch 1; speedup by drafts at every size."""
    first = curve[0]
    grown = [
        Ratio(f"batch {at.size} / batch {first.size}{rest}", *ratio)
        for at in curve[1:]
        for rest, ratio in (
            ("", at.plain.faster_than(first.plain)),
            (", after the prompts", at.plain.decodes_faster_than(first.plain)),
        )
    ]
    return [*grown, *(Ratio(f"drafted / plain at batch {at.size}", *at.drafted.faster_than(at.plain)) for at in curve)]


def methods_table(drafter: str, summary: Mapping[str, Any], trials: Sequence[Trial], where: str) -> Table:
    """Tokens/s of every method, and how many of its texts equal those of the drafter."""
    title = f"{summary['prompts']} prompts, {summary['new_tokens']} new tokens, greedy ({where})"
    table = Table(title=title)
    table.add_column("method")
    table.add_column("tokens/s", justify="right")
    table.add_column(f"texts equal to {drafter}'s", justify="right")
    table.add_row(drafter, f"{summary['tokens_per_second']:.1f}", "")
    table.add_row(BASE, f"{summary['autoregressive_tokens_per_second']:.1f}", identical(summary).partition(" ")[0])
    for method in [summary["reference"], *summary["other_references"]] if summary["reference"] else []:
        equal = "-" if method["identical"] is None else f"{method['identical']}/{len(trials)}"
        table.add_row(method["name"], f"{method['tokens_per_second']:.1f}", equal)
    for name, why in summary["missing_references"].items():
        table.add_row(name, why, "")
    return table


def curve_table(drafter: str, curve: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="over batch size")
    for column in ("batch", f"{BASE} tokens/s", f"{drafter} tokens/s", "speedup", "τ", "ms per step"):
        table.add_column(column, justify="right")
    for at in curve:
        table.add_row(
            str(at["batch_size"]),
            f"{at['autoregressive_tokens_per_second']:.1f}",
            f"{at['tokens_per_second']:.1f}",
            ratio_text(at["speedup"], at["speedup_ci95"]),
            f"{at['tokens_per_step']:.2f}",
            "  ".join(f"{phase} {ms:.1f}" for phase, ms in at["phase_ms"].items()),
        )
    return table


def ratios_table(ratios: Sequence[Ratio], targets: Mapping[str, float]) -> Table:
    table = Table(title="ratios")
    table.add_column("ratio", no_wrap=True)
    for column in ("measured [95 % interval]", "target", "reached"):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio in ratios:
        target = targets.get(ratio.name)
        row = (ratio.name, ratio_text(ratio.value, ratio.interval))
        if target is None:
            table.add_row(*row)
        else:
            table.add_row(*row, f"{'<=' if ratio.less else '>='} {target}", "yes" if ratio.meets(target) else "no")
    return table


def ratio_text(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.2f}x" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


if __name__ == "__main__":
    launch(main)
