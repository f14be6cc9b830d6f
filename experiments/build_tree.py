"""Find the best static tree for Medusa heads by how often their candidates are right on text of the target.

python -m experiments.build_tree data=data/smollm2 drafter.heads=outputs/heads output=outputs/heads/tree.yaml
python -m experiments.build_tree prompts=jsonl prompts.path=questions.jsonl nodes=32 assume=independence
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from drafters.medusa.drafter import load_heads
from drafters.medusa.measure import Accuracy, accuracies
from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.progress import progress
from experiments.common.settings import Settings, settings, typed
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.generate import autoregressive
from specdec.errors import InputError
from specdec.files.durable import write_json
from specdec.model.target import TargetModel
from specdec.options import Count
from specdec.prompts.sets import PromptEncoder, PromptSet, first_turns
from specdec.runs.provenance import provenance
from specdec.training.text.store import TextStore
from specdec.training.text.texts import HIDDEN, Origin
from specdec.trees.files import GUESSED_HEADS, TREE_FILE, write_tree
from specdec.trees.topology import IndexPath, best_tree, most_frequent_tree

Texts = Iterator[tuple[list[int], Tensor, list[list[int]]]]  # ids, hidden states [seq dim], answers
SIZES = (1, 3, 7, 15, 31, 63)  # numbers of nodes for which the expectation is printed


@dataclass
class Options:
    """Options as in conf/build_tree.yaml."""

    data: str | None
    positions: Count
    nodes: Count
    candidates: Count
    assume: str
    output: str | None


@hydra.main(config_path=CONF, config_name="build_tree", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options = settings(cfg)
    checked(typed(cfg, Options))
    target = instantiate(cfg.target)
    heads, _ = load_heads(cfg.drafter.heads, target, GUESSED_HEADS)
    if cfg.data is not None:
        texts, source = stored(Path(cfg.data), target), str(cfg.data)
    else:
        prompts = instantiate(cfg.prompts)
        options.sampling().say_not_followed(target.model)
        texts, source = answered(prompts, target, options), f"answers to {len(prompts)} prompts"
    ranks, others = halves(measured(Accuracy(heads, target, cfg.candidates), texts, cfg.positions))
    rates = accuracies(ranks, cfg.candidates)
    joint = cfg.assume == "joint"
    paths, gains = most_frequent_tree(ranks, cfg.nodes) if joint else best_tree(rates.tolist(), cfg.nodes)
    run, folder = provenance(), Path(HydraConfig.get().runtime.output_dir)
    figures = {
        "target": target.name,
        "heads": str(cfg.drafter.heads),
        "measured_on": source,
        "positions": len(ranks),
        "counted_on": len(others),  # positions in texts that the tree was not chosen from
        "commit": run["commit"],
        "assume": cfg.assume,
        "accuracies": [[round(rate, 5) for rate in head] for head in rates.tolist()],  # [head][rank]
        "gains": [round(gain, 6) for gain in gains],  # gain of each path in tokens per step
        "tokens_per_step": round(1 + counted(paths, others), 6) if len(others) else None,
        "paths": [list(path) for path in paths],
    }
    command = shlex.join(["python", "-m", "experiments.build_tree", *HydraConfig.get().overrides.task])
    for file in (folder / TREE_FILE, *([Path(cfg.output)] if cfg.output else [])):
        write_tree(file, command, figures)
    write_json(folder / "provenance.json", run)
    stdout.print(accuracy_table(rates, f"Medusa heads on {target.name}, {len(ranks):,} positions"))
    stdout.print(tree_table(paths, gains, others))
    stdout.print(f"counted on {len(others):,} positions of texts that the tree was not chosen from", highlight=False)
    stdout.print(f"tree: {cfg.output or folder / TREE_FILE}", soft_wrap=True, highlight=False)


def measured(measure: Accuracy, texts: Texts, positions: int) -> list[Tensor]:
    """Return the heads' ranks at the first `positions` positions of the texts, [positions heads] per text."""
    found, left = [], positions
    with progress("positions", positions) as advance:
        for tokens, hidden, answers in texts:
            ranks = measure.ranks(torch.tensor(tokens), hidden, answers)[:left]
            left -= len(ranks)
            advance(len(ranks), "")
            if len(ranks):
                found.append(ranks)
            if not left:
                break
    if not found:
        fix = "take more or longer text"
        raise InputError("data", expected="answers longer than there are heads", got="none", fix=fix)
    return found


def halves(ranks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Split the texts in turn: one half to choose a tree from, the other to count on (empty for a single text)."""
    return torch.cat(ranks[::2]), torch.cat(ranks[1::2] or [ranks[0][:0]])


def checked(cfg: Options) -> None:
    """Check everything that can be checked before the target is loaded."""
    if cfg.assume not in ("joint", "independence"):
        raise InputError("assume", expected="joint or independence", got=repr(cfg.assume), fix="choose one")
    if cfg.output is not None and not Path(cfg.output).parent.is_dir():
        raise InputError("output", expected="a file in a folder that exists", got=cfg.output, fix="make the folder")


def stored(folder: Path, target: TargetModel) -> Texts:
    """Yield the validation split of a data folder. Hidden states that are not stored are computed."""
    store = TextStore(folder)
    store.origin.require_same(Origin.of(target), folder)
    for text in store.validation:
        tokens = store.tokens(text).tolist()
        hidden = store.feature(text, HIDDEN).float() if store.has(text, HIDDEN) else read(target, tokens)
        yield tokens, hidden.to(target.device), text.answers


def answered(prompts: PromptSet, target: TargetModel, options: Settings) -> Texts:
    """Yield the target's answers to the first turn of each prompt."""
    encoder, size = PromptEncoder.of(target), options.generation.batch_size
    rows = first_turns(prompts, encoder, target.context_window, options.generation.max_new_tokens)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        seeds = [[options.seed, start + row] for row in range(len(batch))]
        done = autoregressive(batch, target, options.sampling(), options.stop_rule(target), seeds)
        for prompt, text in zip(batch, done.texts, strict=True):
            tokens = [*prompt, *text]
            yield tokens, read(target, tokens), [[len(prompt), len(tokens)]]


def read(target: TargetModel, tokens: list[int]) -> Tensor:
    return target.prefill(target.new_cache(1, len(tokens)), [tokens]).hidden[0]


def accuracy_table(rates: Tensor, title: str) -> Table:
    out = Table(title=title)
    for column in ("head", "guesses token", "top-1", "top-2", "top-5", f"top-{rates.shape[1]}"):
        out.add_column(column, justify="right")
    for head, right in enumerate(rates.cumsum(1)):
        shown = [right[min(k, len(right)) - 1] for k in (1, 2, 5, len(right))]
        out.add_row(str(head), f"t + {head + 2}", *(f"{float(share):.3f}" for share in shown))
    return out


def tree_table(paths: list[IndexPath], gains: list[float], others: Tensor) -> Table:
    """Show tokens per step of the tree's first n nodes: expected, and counted on texts it was not chosen from."""
    out = Table(title="tokens per step")
    for column in ("nodes", "depth", "expected", "counted"):
        out.add_column(column, justify="right")
    for size in [*(n for n in SIZES if n < len(paths)), len(paths)]:
        share = f"{1 + counted(paths[:size], others):.3f}" if len(others) else "-"
        out.add_row(str(size), str(max(map(len, paths[:size]))), f"{1 + sum(gains[:size]):.3f}", share)
    return out


def counted(paths: list[IndexPath], ranks: Tensor) -> float:
    """Return the accepted tokens per step at positions with known right ranks, [positions heads]."""
    return sum(float((ranks[:, : len(path)] == torch.tensor(path)).all(1).double().mean()) for path in paths)


if __name__ == "__main__":
    launch(main)
