"""Sampled text has the target's distribution with every YAML of conf/drafter, and drafters that spoil it are found.

Every random outcome of drafter and rule is enumerated over several steps of the loop itself (`specdec/exactness`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from drafters.draft_model.drafter import DraftModel
from drafters.eagle import Eagle
from drafters.eagle.head import fresh_head
from drafters.hydra_heads import Hydra
from drafters.hydra_heads.heads import HydraHeads
from drafters.medusa import Medusa
from drafters.medusa.heads import fresh_heads
from experiments.prove import drafter_proof
from specdec.decoding.protocols import Drafter
from specdec.exactness.drafters import DrafterProof
from specdec.exactness.finding import Finding
from specdec.model.students import new_student
from specdec.model.target import TargetModel
from tests.specdec.exactness.wrong_drafters import WRONG, Sampled
from tests.support.configs import composed, group
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.traversal import Traversal
from verifiers.tree_attention import TreeAttention

SMALL = ((3, 3), (2, 3))  # tokens of the target, tokens of a text
Sizes = tuple[tuple[int, int], ...]
CHILDREN = {
    "draft_model": ["widths=[2]", ("with_replacement", "without_replacement", "top_k")],
    "ngram_lm": ["widths=[2]", ("with_replacement", "without_replacement", "top_k")],
    "medusa": ["tree=2", ("with_replacement", "without_replacement", "top_k")],
    "eagle": ["depth=2", ("with_replacement",)],
    "hydra_heads": ["depth=2", ("with_replacement",)],
    "early_exit": ["depth=2", ("with_replacement",)],
}
DRAWN = [(name, size, how) for name, (size, ways) in CHILDREN.items() for how in ways]


def require(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.passed, f"{finding.what}: {finding.failure}"


def proof(*overrides: str, tree: str = "as_drafted", sizes: Sizes = SMALL) -> DrafterProof:
    cfg = composed(*overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.tree, cfg.sizes, cfg.most = tree, [list(size) for size in sizes], 700
    return drafter_proof(cfg.drafter, Traversal(), cfg)


@pytest.mark.parametrize("choice", group("drafter"))
def test_every_drafter_keeps_the_distribution(choice: str) -> None:
    small = ["drafter.widths=[2]"] if choice == "ngram_lm" else []
    require(proof(f"drafter={choice}", *small, sizes=((5, 3), (3, 3))).findings())


@pytest.mark.parametrize(("choice", "size", "children"), DRAWN)
def test_every_way_of_drawing_children_keeps_it(choice: str, size: str, children: str) -> None:
    require(proof(f"drafter={choice}", f"drafter.{size}", f"drafter.children={children}").findings())


def test_adaptive_trees_keep_it() -> None:
    require(proof("drafter=hydra_heads", tree="adaptive").findings())


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


RANDOM: dict[str, Callable[[TargetModel], Drafter]] = {
    "medusa": lambda t: Medusa(noisy(fresh_heads(t, 2)), 3),
    "hydra": lambda t: Hydra(noisy(HydraHeads.of(fresh_heads(t, 2).double(), fresh_head(t))), depth=2),
    "hydra drawn": lambda t: Hydra(
        noisy(HydraHeads.of(fresh_heads(t, 2).double())), depth=2, children="with_replacement"
    ),
    "eagle": lambda t: Eagle(noisy(fresh_head(t)), depth=3, children="with_replacement"),
    "student": lambda t: DraftModel(noisy(new_student(t, [0])), [2]),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_weights_keep_it(name: str) -> None:
    require(DrafterProof(RANDOM[name], TreeAttention, Traversal(), SMALL, 700).findings())


@pytest.mark.parametrize("rule", [Exact(), Traversal()], ids=lambda rule: rule.name)
def test_the_drafter_that_the_wrong_ones_are_made_of_is_right(rule: Exact | Traversal) -> None:
    require(DrafterProof(lambda _: Sampled(), TreeAttention, rule, SMALL, 3000).findings()[1:])


@pytest.mark.parametrize("drafter", WRONG, ids=lambda made: made.__name__)
def test_a_drafter_that_spoils_it_is_found(drafter: Callable[[], Sampled]) -> None:
    findings = DrafterProof(lambda _: drafter(), TreeAttention, Exact(), SMALL, 3000).findings()[1:]
    assert not all(finding.passed for finding in findings)
