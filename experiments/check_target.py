"""Show how a target was checked against the stock model, and which kernels its layers use; writes `check.json`.

python -m experiments.check_target target=smollm2_135m
python -m experiments.check_target target=hf target.name=Qwen/Qwen3-8B draft=Qwen/Qwen3-0.6B
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.settings import typed
from experiments.common.tables import print_path, stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.processors import not_used, obeyed
from specdec.decoding.sampling import SamplingParams
from specdec.files.durable import write_json
from specdec.model.load import load
from specdec.model.proof.difference import LARGEST, MEDIAN
from specdec.model.proof.serving import Serving, served
from specdec.model.proof.twin import windows
from specdec.model.target import TargetModel
from specdec.runs.provenance import provenance

CHECK = "check.json"
Facts = dict[str, Any]


@dataclass
class Options:
    """Options as in conf/check_target.yaml."""

    draft: str | None = None


@hydra.main(config_path=CONF, config_name="check_target", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    options = typed(cfg, Options)
    target = instantiate(cfg.target)
    draft = None if options.draft is None else load(options.draft, device=str(target.device))
    models = {"target": target} if draft is None else {"target": target, "draft": draft}
    facts = {role: facts_of(model) for role, model in models.items()}
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_json(folder / CHECK, {**facts, "provenance": provenance()})
    for role, model in models.items():
        stdout.print(model_table(facts[role]))
        stdout.print(proof_table(model))
    if draft is not None:
        stdout.print(vocabulary_table(target, draft))
    print_path("check", folder / CHECK)


def facts_of(model: TargetModel) -> Facts:
    """Return the facts that the table shows about one model."""
    proof = model.proof
    assert proof is not None, "models that are loaded are proven"
    return {
        "name": model.name,
        "class": type(model.model).__name__,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "logits": model.vocab_size,
        "tokens": None if model.tokenizer is None else len(model.tokenizer),
        "context window": model.context_window,
        "attention windows": windows(model.model.config),
        "EOS": {i: _token(model, i) for i in sorted(model.eos)},
        "generation config": {
            "obeyed": obeyed(model.model.generation_config),
            "not used": not_used(model.model.generation_config, SamplingParams()),
        },
        "layers": [asdict(serving) for serving in served(model)],
        "falls back": [line for line in (model.not_fused, proof.note) if line],
        "differences": {stage: list(shares) for stage, shares in proof.differences.items()},
        "seconds": proof.seconds,
        "remembered": proof.remembered,
    }


def model_table(facts: Facts) -> Table:
    """Show one model, and what its layers run on."""
    table = Table(title=f"{facts['name']} ({facts['class']})", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    tokens = "no tokenizer" if facts["tokens"] is None else f"{facts['tokens']:,} tokens"
    rows = {
        "weights": f"{facts['parameters']:,} parameters in {facts['dtype']} on {facts['device']}",
        "vocabulary": f"{facts['logits']:,} logits, {tokens}",
        "context window": "not stated" if facts["context window"] is None else f"{facts['context window']:,} tokens",
        "attention windows": ", ".join(f"{k} {v:,}" for k, v in facts["attention windows"].items()) or "none",
        "EOS": ", ".join(f"{i} {token!r}" for i, token in facts["EOS"].items()) or "none: texts end at max_new_tokens",
        "generation config": config_words(facts["generation config"]),
        **layer_rows([Serving(**serving) for serving in facts["layers"]]),
        "falls back": "; ".join(facts["falls back"]) or "nothing",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def config_words(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """List the settings that every method of a run follows, and those that none follows."""
    words = {
        how: ", ".join(f"{name}={value!r}" for name, value in of_kind.items()) for how, of_kind in settings.items()
    }
    return "; ".join(f"{how}: {listed}" for how, listed in words.items() if listed) or "nothing that changes texts"


def layer_rows(layers: Iterable[Serving]) -> dict[str, str]:
    """Return one row per group of neighbouring layers that run on the same kernels."""
    rows = {}
    for (attention, products, feature), group in groupby(layers, lambda s: (s.attention, s.products, s.feature)):
        numbers = [serving.layer for serving in group]
        name = f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {numbers[0]} to {numbers[-1]}"
        what = "one call for all of them (compiled C++)" if attention == "fused" else f"attention {attention}"
        rows[name] = f"{what}{f' ({feature})' if feature else ''}, products: {products}"
    return rows


def proof_table(model: TargetModel) -> Table:
    """Show every comparison with the stock model, and the difference that rounding can explain."""
    proof = model.proof
    assert proof is not None
    when = f"remembered, read in {proof.seconds * 1e3:.0f} ms" if proof.remembered else f"made in {proof.seconds:.1f} s"
    table = Table(title=f"our forward beside transformers' ({when}); differences as shares of a row's spread")
    table.add_column("what was compared", no_wrap=True)
    for column in ("largest", "allowed", "median", "allowed"):
        table.add_column(column, justify="right")
    for stage, (top, middle) in proof.differences.items():
        allowed = LARGEST[model.dtype], MEDIAN[model.dtype]
        table.add_row(stage, f"{top:.0e}", f"{allowed[0]:.0e}", f"{middle:.0e}", f"{allowed[1]:.0e}")
    return table


def vocabulary_table(target: TargetModel, draft: TargetModel) -> Table:
    """Compare the tokens of both models."""
    table = Table(title=f"vocabularies of {target.name} and {draft.name}")
    table.add_column("")
    for column in ("target", "draft"):
        table.add_column(column, justify="right")
    table.add_row("logits", f"{target.vocab_size:,}", f"{draft.vocab_size:,}")
    if target.tokenizer is not None and draft.tokenizer is not None:
        ours, theirs = target.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
        same = sum(theirs.get(token) == number for token, number in ours.items())
        table.add_row("tokens", f"{len(ours):,}", f"{len(theirs):,}")
        table.add_row("with the same id in both", f"{same:,}", f"{same:,}")
    return table


def _token(model: TargetModel, number: int) -> str:
    return "" if model.tokenizer is None else str(model.tokenizer.convert_ids_to_tokens(number))


if __name__ == "__main__":
    launch(main)
