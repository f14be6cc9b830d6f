"""Prove that acceptance rules and drafters keep the target's distribution, by enumerating every random outcome.

python -m experiments.prove                                       # everything in conf/acceptance and conf/drafter
python -m experiments.prove --config-dir my_conf acceptance=my_rule    # a rule outside of the repository
python -m experiments.prove --config-dir my_conf drafter=my_drafter drafter.depth=2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table

from experiments.common.components import instantiate
from experiments.common.entry import CONF
from experiments.common.parts import choices, part, untrained
from experiments.common.settings import TREES
from experiments.common.tables import stdout
from experiments.common.task import Task
from experiments.sweeps.launch import launch
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.errors import InputError
from specdec.exactness.drafters import DrafterProof
from specdec.exactness.finding import Finding, require_passed
from specdec.exactness.rules import prove_rule
from specdec.files.durable import write_json
from specdec.model.target import TargetModel
from specdec.runs.provenance import provenance

GENERAL = "traversal"  # judges a drafter's trees if no rule is named: it is exact for every tree


@dataclass(frozen=True)
class Proven:
    """All findings about one rule or drafter; `expected` is its claim."""

    subject: str
    expected: str
    findings: list[Finding]


@hydra.main(config_path=CONF, config_name="prove", version_base="1.3")
@Task
def main(cfg: DictConfig) -> None:
    if cfg.tree not in TREES:
        raise InputError("tree", expected=f"one of {', '.join(TREES)}", got=repr(cfg.tree), fix="choose one")
    torch.set_num_threads(1)  # small tensors
    proven = []
    for one in proofs(cfg):
        proven.append(one)
        stdout.print(table(one))
    folder = Path(HydraConfig.get().runtime.output_dir)
    results = [{"subject": one.subject, "findings": [asdict(f) for f in one.findings]} for one in proven]
    write_json(
        folder / "summary.json", {"proofs": results, "passed": all(f.passed for p in proven for f in p.findings)}
    )
    write_json(folder / "provenance.json", provenance())
    for one in proven:
        require_passed(one.subject, one.expected, one.findings)


def proofs(cfg: DictConfig) -> Iterator[Proven]:
    """Yield proofs of the rule and the drafter that the config names, or of all if it names none."""
    names, rule, drafter = HydraConfig.get().runtime.choices, cfg.get("acceptance"), cfg.get("drafter")
    everything = rule is None and drafter is None
    rules = {name: part("acceptance", name) for name in choices("acceptance")} if everything else {}
    drafters = {name: part("drafter", name) for name in choices("drafter")} if everything else {}
    if rule is not None:
        rules[names["acceptance"]] = rule
    if drafter is not None:
        drafters[names["drafter"]] = drafter
    for name, config in rules.items():
        claim = "the target's distribution, as lossless = True declares"
        yield Proven(f"acceptance={name}", claim, prove_rule(instantiate(config)))
    judge = instantiate(part("acceptance", GENERAL) if rule is None else rule)
    for name, config in drafters.items():
        yield Proven(
            f"drafter={name}", "texts with the target's distribution", drafter_proof(config, judge, cfg).findings()
        )


def drafter_proof(config: DictConfig, rule: AcceptanceRule, cfg: DictConfig) -> DrafterProof:
    """Return the proof of a drafter.

    Args:
        config: config of the drafter; `auto` weights are replaced by untrained ones.
        rule: the rule that judges its trees.
        cfg: the other options of conf/prove.yaml.
    """

    def make(target: TargetModel) -> Drafter:
        draft = {"_target_": "specdec.model.load.load_tiny", "vocab": target.vocab_size, "seed": 1}
        draft |= {"dtype": "float64", "device": "cpu", "runtime": "stock"}
        drafter = instantiate(untrained(config, draft), _convert_="all")
        if cfg.tree == "adaptive":
            return instantiate(cfg.adaptive)(drafter, costs=SteadyCosts(), draft_ms=SteadyCosts.LEVEL_MS)
        return drafter

    def verifier(target: TargetModel) -> Verifier:
        return instantiate(cfg.verifier, target=target)

    return DrafterProof(make, verifier, rule, [(int(v), int(n)) for v, n in cfg.sizes], cfg.most)


class SteadyCosts:
    """A `CostCurve` without a clock, so that the same outcome always gives the same adaptive tree.

    Its costs are such that some nodes pay and others do not.
    """

    LEVEL_MS = 0.05

    def seconds(self, nodes: float, batch: int, context: int) -> float:
        return 1e-3 * (1 + 0.15 * nodes)


def table(proven: Proven) -> Table:
    """Show one row per check."""
    out = Table(title=proven.subject, title_justify="left")
    out.add_column("check", min_width=40)
    out.add_column("outcomes", justify="right")
    out.add_column("largest\ndifference", justify="right")
    out.add_column("result")
    if not proven.findings:
        out.add_row("declared lossy: nothing to prove", "", "", "")
    for f in proven.findings:
        apart: Any = "" if f.difference is None else f"{f.difference:.1e}"
        out.add_row(
            f.what, f"{f.outcomes:,}", apart, (f.failure and f"FAILS: {f.failure}") or f"passes. {f.note}".strip()
        )
    return out


if __name__ == "__main__":
    launch(main)
