"""Expected accepted length of acceptance rules on synthetic p and q, computed exactly: no model, no sampling.

python -m experiments.study_acceptance widths=[2,1] vocab=4
python -m experiments.study_acceptance widths=[1,1,1] rules=[with_replacement/exact,with_replacement/block]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import hydra
import plotly.graph_objects as go
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.entry import CONF, launch
from experiments.common.settings import typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.compare_acceptance import COLOURS, rule
from specdec.decoding.grow_fixed import TreeShape
from specdec.errors import InputError
from specdec.exactness.enumeration import Tables, emission, outcomes
from specdec.files.durable import write_json
from specdec.options import Count, NonNegative, Range, Seed, Share
from specdec.runs.log import provenance

MOST_OUTCOMES = 300_000  # some seconds


@dataclass
class Options:
    """See conf/study_acceptance.yaml."""

    widths: list[Count]
    vocab: Annotated[int, Range(2, 1000)]
    distances: list[Share]
    cases: Annotated[int, Range(1, 10_000)]
    sharpness: NonNegative
    seed: Seed
    rules: list[str]


@hydra.main(config_path=CONF, config_name="study_acceptance", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options = typed(cfg, Options)
    for name in ("widths", "distances", "rules"):
        if not getattr(options, name):
            raise InputError(name, expected="at least one", got="none", fix="name some")
    widths = options.widths
    for choice in cfg.rules:
        rule(choice.partition("/")[2])
        TreeShape(widths, choice.partition("/")[0])  # refuses widths and ways of drawing that do not exist
    if outcomes(widths, cfg.vocab) > MOST_OUTCOMES:
        raise InputError(
            "widths and vocab",
            expected=f"at most {MOST_OUTCOMES:,} different trees",
            got=f"{outcomes(widths, cfg.vocab):,}",
            fix="lower vocab or widths: every tree is enumerated",
        )
    torch.set_num_threads(1)  # small tensors
    choices = [choice.partition("/")[::2] for choice in cfg.rules]  # (how siblings are drawn, rule)
    results = [measured(how, name, distance, widths, cfg) for how, name in choices for distance in cfg.distances]
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_json(folder / "summary.json", {"vocab": cfg.vocab, "widths": widths, "results": results})
    write_json(folder / "provenance.json", provenance())
    plot(results, f"vocabulary {cfg.vocab}, widths {widths}").write_html(folder / "study.html", include_plotlyjs=True)
    stdout.print(table(results, f"expected accepted length (vocabulary {cfg.vocab}, widths {widths}, exact)"))
    stdout.print(f"run folder: {folder} (plot: study.html)", soft_wrap=True, highlight=False)


def measured(how: str, name: str, distance: float, widths: list[int], cfg: DictConfig) -> dict[str, Any]:
    """Mean over the cases of the expected accepted length, and of the total variation between p and q."""
    lengths, variations = [], []
    for case in range(cfg.cases):
        p, q = tables(cfg.vocab, len(widths), distance, cfg.sharpness, cfg.seed + case)
        lengths.append(emission(rule(name), widths, p, q, how).accepted)
        variations.append(float((p.levels[0] - q.levels[0]).abs().sum() / 2))
    return {
        "siblings": how,
        "rule": name,
        "distance": distance,
        "total_variation": fmean(variations),
        "accepted": fmean(lengths),
    }


def tables(vocab: int, depth: int, distance: float, sharpness: float, seed: int) -> tuple[Tables, Tables]:
    """Random p for depth + 1 tokens, and q = (1 - distance) p + distance r with an independent r like p."""
    generator = torch.Generator().manual_seed(seed)

    def level(d: int) -> torch.Tensor:
        numbers = torch.rand(vocab**d, vocab, generator=generator, dtype=torch.float64) ** sharpness
        return numbers / numbers.sum(-1, keepdim=True)

    p = [level(d) for d in range(depth + 1)]
    return Tables(p), Tables([(1 - distance) * p_d + distance * level(d) for d, p_d in enumerate(p[:-1])])


def table(results: list[dict[str, Any]], title: str) -> Table:
    out = Table(title=title)
    out.add_column("siblings", no_wrap=True)
    out.add_column("rule", no_wrap=True)
    distances = list(dict.fromkeys(r["distance"] for r in results))
    for distance in distances:
        variation = next(r["total_variation"] for r in results if r["distance"] == distance)
        out.add_column(f"d={distance:g}\nTV {variation:.2f}", justify="right")
    for how, name in dict.fromkeys((r["siblings"], r["rule"]) for r in results):
        of_rule = [r for r in results if (r["siblings"], r["rule"]) == (how, name)]
        out.add_row(how, name, *(f"{r['accepted']:.3f}" for r in of_rule))
    return out


def plot(results: list[dict[str, Any]], title: str) -> go.Figure:
    figure = go.Figure()
    rules = list(dict.fromkeys(r["rule"] for r in results))
    dashes = dict(zip(dict.fromkeys(r["siblings"] for r in results), ("solid", "dash", "dot"), strict=False))
    for how, name in dict.fromkeys((r["siblings"], r["rule"]) for r in results):
        points = [r for r in results if (r["siblings"], r["rule"]) == (how, name)]
        figure.add_scatter(
            x=[r["total_variation"] for r in points],
            y=[r["accepted"] for r in points],
            name=f"{name}, {how.replace('_', ' ')}",
            line={"color": COLOURS[rules.index(name) % len(COLOURS)], "dash": dashes[how]},
        )
    figure.update_xaxes(title="total variation between p and q")
    figure.update_yaxes(title="expected accepted tokens per tree")
    return figure.update_layout(title=f"Acceptance rules, exact: {title}", template="plotly_white")


if __name__ == "__main__":
    launch(main)
