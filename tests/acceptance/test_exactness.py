"""Proof by enumeration: every lossless rule leaves the target's joint distribution as it is, to 1e-12."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from specdec.enumeration import emission
from specdec.protocols import AcceptanceRule, Verdict
from specdec.sampling import Draws
from specdec.tree import TokenTree
from tests.acceptance.cases import KINDS, tables
from tests.acceptance.row_by_row import RowByRow
from verifiers.acceptance.block import Block
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.rejection import top_down
from verifiers.acceptance.spectr import SpecTr
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.typical import Typical
from verifiers.acceptance.without_replacement import WithoutReplacement

EXACT = 1e-12  # float64 rounding over some 10,000 outcomes stays far below; any bias lies far above
CHAINS = [(3, (1,)), (5, (1, 1)), (3, (1, 1, 1))]  # vocabulary, children per node at each depth
TREES = [(5, (2,)), (4, (3,)), (4, (2, 1)), (3, (1, 2)), (3, (2, 2)), (3, (3, 1)), (3, (2, 1, 1)), (3, (1, 1, 2))]
ROOMY = [*CHAINS, *TREES]

PROOFS: list[tuple[AcceptanceRule, str, list[tuple[int, tuple[int, ...]]]]] = [
    (Exact(), "with_replacement", ROOMY),
    (Exact(), "top_k", ROOMY),
    (WithoutReplacement(), "without_replacement", ROOMY),
    (WithoutReplacement(), "top_k", ROOMY),
    (SpecTr(), "with_replacement", ROOMY),
    (SpecTr(), "top_k", ROOMY),
    (Block(), "with_replacement", CHAINS),
    (Block(), "without_replacement", CHAINS),
    (Block(), "top_k", CHAINS),
    (Traversal(), "with_replacement", ROOMY),
    (Traversal(), "without_replacement", ROOMY),
    (Traversal(), "top_k", ROOMY),
]


def distance(rule: AcceptanceRule, kind: str, vocab: int, widths: tuple[int, ...], how: str, seed: int) -> float:
    p, q = tables(kind, vocab, len(widths), seed)
    return float((emission(rule, widths, p, q, how).joint - p.joint()).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "how", "shapes"), PROOFS, ids=lambda v: getattr(v, "name", v if isinstance(v, str) else "")
)
def test_joint_distribution_is_the_targets(
    rule: AcceptanceRule, how: str, shapes: list[tuple[int, tuple[int, ...]]], kind: str
) -> None:
    for vocab, widths in shapes:
        assert distance(rule, kind, vocab, widths, how, seed=len(widths)) < EXACT, (vocab, widths)


@pytest.mark.parametrize("kind", ["random", "peaked", "sparse", "equal"])
@pytest.mark.parametrize("how", ["with_replacement", "without_replacement", "top_k"])
@pytest.mark.parametrize("widths", [(1, 1), (2,), (2, 1)])
def test_traversal_of_a_single_row_is_exact(widths: tuple[int, ...], how: str, kind: str) -> None:
    """A batch of one on a CPU has a walk of its own (plain numbers)."""
    assert distance(RowByRow(Traversal()), kind, 3, widths, how, seed=5) < EXACT


class AcceptsTooMuch:
    """Biased: accepts with probability min(1, p / q) and then recovers from p itself, not from the residual."""

    name, lossless = "accepts_too_much", False

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        verdict = top_down(tree, target_probs, SkipNextToken(draws))
        node = verdict.path.gather(1, (verdict.path >= 0).sum(-1, keepdim=True) - 1)[:, 0]
        return Verdict(verdict.path, draws.categorical(target_probs[torch.arange(tree.batch), node], 0))


@dataclass
class SkipNextToken:
    draws: Draws

    def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
        return self.draws.bernoulli(probs, slot)

    def categorical(self, probs: Tensor, slot: int) -> Tensor:
        return torch.zeros(len(probs), dtype=torch.long)


class ForgetsTheSibling:
    """Biased: children drawn without replacement, judged as if they were independent."""

    name, lossless = "forgets_the_sibling", False

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        return top_down(tree, target_probs, draws)


def test_biased_rules_are_found() -> None:
    for widths in ((1,), (2, 1)):
        assert distance(AcceptsTooMuch(), "random", 3, widths, "with_replacement", seed=1) > 1e-3
        assert distance(Typical(0.09, 0.3), "random", 3, widths, "with_replacement", seed=1) > 1e-3
    assert distance(ForgetsTheSibling(), "random", 3, (2,), "without_replacement", seed=1) > 1e-3
    assert distance(ForgetsTheSibling(), "random", 3, (2,), "with_replacement", seed=1) < EXACT
