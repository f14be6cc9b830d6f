"""Compare acceptance rules by temperature on the same trees: a table, `summary.json`, and a plot in the run folder.

Lossless rules are proven first by a quick enumeration. At temperature 0 they are compared with the greedy verdict on
every tree, and the command fails if one differs.

python -m experiments.compare_acceptance drafter=ngram_lm target=smollm2_135m
python -m experiments.compare_acceptance synthetic=true study.widths=[1,1,1] study.rules=[with_replacement/block]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from experiments.common.acceptance_study import study
from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.parts import rule
from experiments.common.settings import settings, typed
from experiments.common.tables import number, progress_bar, stdout, within
from experiments.common.task import Task
from experiments.pictures.acceptance import acceptance_plot, study_plot
from experiments.sweeps.launch import launch
from specdec.errors import InputError
from specdec.exactness.rules import require_proven
from specdec.exactness.synthetic import Study
from specdec.files.durable import write_json
from specdec.measure.rules import RuleComparison, Trees
from specdec.notes import counted
from specdec.options import Count, NonNegative
from specdec.prompts.sets import PromptEncoder, first_turns
from specdec.runs.provenance import provenance


@dataclass
class Kind:
    """Options of the drafter for one kind of tree, and the rules that judge such trees."""

    drafter: dict[str, Any]
    rules: list[str]


@dataclass
class Options:
    """Options as in conf/compare_acceptance.yaml."""

    temperatures: list[NonNegative]
    draws: Count
    trees: dict[str, Kind]
    synthetic: bool
    study: Study


@hydra.main(config_path=CONF, config_name="compare_acceptance", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options = settings(cfg)
    chosen = typed(cfg, Options)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if chosen.synthetic:
        title = f"vocabulary {chosen.study.vocab}, widths {chosen.study.widths}"
        study_plot(study(chosen.study, folder), title).write_html(folder / "study.html", include_plotlyjs=True)
        stdout.print(f"run folder: {folder} (plot: study.html)", soft_wrap=True, highlight=False)
        return
    require_some(chosen)
    samplings = [replace(options.sampling(), temperature=temperature) for temperature in chosen.temperatures]
    prompts = instantiate(cfg.prompts)
    target = instantiate(cfg.target)
    samplings[0].say_not_followed(target.model)
    encoder = PromptEncoder.of(target)
    comparison = RuleComparison(
        verifier=instantiate(cfg.verifier, target=target),
        prompts=first_turns(prompts, encoder, target.context_window, options.generation.max_new_tokens),
        stop=options.stop_rule(target),
        draws=chosen.draws,
        seed=options.seed,
    )
    kinds = [trees(name, cfg) for name in chosen.trees]
    for judge in {judge.name: judge for kind in kinds for judge in kind.rules}.values():
        require_proven(judge)
    results = []
    with progress_bar(len(kinds) * len(samplings)) as advance:
        for kind in kinds:
            for sampling in samplings:
                results += comparison.run(kind, sampling)
                advance(kind)
    write_json(folder / "summary.json", {"target": target.name, "prompts": len(prompts), "results": results})
    write_json(folder / "provenance.json", provenance())
    acceptance_plot(results).write_html(folder / "acceptance.html", include_plotlyjs=True)
    stdout.print(
        table(results, f"acceptance rules on {target.name}, {counted(len(prompts), 'prompt')}, the same trees")
    )
    stdout.print(f"run folder: {folder} (plot: acceptance.html)", soft_wrap=True, highlight=False)


def require_some(chosen: Options) -> None:
    """Refuse options that leave nothing to compare.

    Raises:
        InputError: no temperatures, trees or rules, or an unknown rule.
    """
    for name, found in (("temperatures", chosen.temperatures), ("trees", chosen.trees)):
        if not found:
            raise InputError(name, expected="at least one", got="none", fix="name some")
    for name, kind in chosen.trees.items():
        for choice in kind.rules:
            rule(choice)
        if not kind.rules:
            raise InputError(f"trees.{name}.rules", expected="at least one rule", got="none", fix="name some")


def trees(name: str, cfg: DictConfig) -> Trees:
    """Return one kind of trees of the config: the drafter with its options, and the rules by name."""
    kind = cfg.trees[name]
    drafter = instantiate(OmegaConf.merge(cfg.drafter, kind.drafter), _convert_="all")
    return Trees(name, drafter, [rule(choice) for choice in kind.rules])


def table(results: list[dict[str, Any]], title: str) -> Table:
    """Show rules by temperature, acceptance by depth at the highest temperature, and the time over all."""
    temperatures = sorted({r["temperature"] for r in results})
    out = Table(title=title)
    for column in ("rule", "lossless"):
        out.add_column(column, no_wrap=True)
    for temperature in temperatures:
        out.add_column(f"τ at T={temperature}", justify="right", no_wrap=True)
    out.add_column(f"acceptance at\ndepth 1, 2, ...\n(T={temperatures[-1]})", justify="right", no_wrap=True)
    out.add_column("accept\nms", justify="right", no_wrap=True)
    for kind in dict.fromkeys(r["trees"] for r in results):
        out.add_section()
        out.add_row(Text(kind, style="bold"))
        for name in dict.fromkeys(r["rule"] for r in results if r["trees"] == kind):
            rows = sorted(
                (r for r in results if (r["trees"], r["rule"]) == (kind, name)), key=lambda r: r["temperature"]
            )
            depths = "  ".join(number(rate) for rate in rows[-1]["acceptance_at_depth"])
            ms = sum(r["accept_ms"] for r in rows) / len(rows)
            taus = [within(r["tokens_per_step"], r["tokens_per_step_ci95"], between="\n") for r in rows]
            out.add_row(f"  {name}", "yes" if rows[0]["lossless"] else "no", *taus, depths, f"{ms:.1f}")
    return out


if __name__ == "__main__":
    launch(main)
