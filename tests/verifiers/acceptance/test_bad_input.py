"""Errors say what was expected, what came, and what to do; the wording is part of the interface."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdec.decoding.generate import greedy_verdict
from specdec.decoding.protocols import AcceptanceRule, Scores
from specdec.decoding.sampling import SamplingParams, UniformDraws
from specdec.errors import InputError
from specdec.trees.tree import TokenTree
from tests.verifiers.acceptance.test_rules import LOSSLESS, by_name
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.spectr import SpecTr
from verifiers.acceptance.typical import Typical
from verifiers.acceptance.without_replacement import WithoutReplacement

DRAWS = UniformDraws(torch.full((2, 3), 0.5, dtype=torch.float64))
CHAIN, FORK = torch.tensor([[-1, 0, 1]] * 2), torch.tensor([[-1, 0, 0]] * 2)
TOKENS = torch.tensor([[0, 1, 2]] * 2)


def even(*shape: int) -> Tensor:
    return torch.full(shape, 1 / shape[-1], dtype=torch.float64)


def message(rule: AcceptanceRule, tree: TokenTree, p: Tensor) -> str:
    with pytest.raises(InputError) as error:
        rule.accept(tree, p, DRAWS)
    return str(error.value)


@pytest.mark.parametrize("rule", [Exact(), SpecTr()], ids=lambda rule: rule.name)
def test_drawn_without_replacement(rule: AcceptanceRule) -> None:
    assert message(rule, TokenTree(TOKENS, FORK, even(2, 3, 4), replacement=False), even(2, 3, 4)) == (
        f"acceptance={rule.name}: expected siblings chosen deterministically or drawn with replacement, got siblings "
        "drawn without replacement; use acceptance=traversal, which is exact for every tree"
    )


def test_drawn_with_replacement() -> None:
    assert message(WithoutReplacement(), TokenTree(TOKENS, FORK, even(2, 3, 4)), even(2, 3, 4)) == (
        "acceptance=without_replacement: expected siblings chosen deterministically or drawn without replacement, got "
        "siblings drawn with replacement; use acceptance=traversal, which is exact for every tree"
    )


def test_not_a_chain() -> None:
    assert message(BlockVerification(), TokenTree(TOKENS, FORK, even(2, 3, 4)), even(2, 3, 4)) == (
        "acceptance=block: expected a chain, every node the only child of the one before it, got node 2 of row 0 with "
        "parent 0; use acceptance=traversal, which is exact for every tree, or a drafter of width 1"
    )


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: rule.name)
def test_needs_q(rule: AcceptanceRule) -> None:
    assert message(rule, TokenTree(TOKENS, CHAIN, replacement=False), even(2, 3, 4)) == (
        "tree.probs: expected q, from which siblings were drawn without replacement, got None; return q from "
        "propose(), or chosen children with replacement=True"
    )


@by_name
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_target_not_finite(rule: AcceptanceRule, bad: float, temperature: float) -> None:
    logits = even(2, 3, 4)
    logits[1, 2, 3] = bad
    p = SamplingParams(temperature).probabilities(logits.view(6, 4)).view(2, 3, 4)
    assert message(rule, TokenTree(TOKENS, CHAIN), p) == (
        "target_probs: expected finite probabilities, got NaN or infinity at row 1, node 2; look for an overflow in "
        "the target (try target.dtype=float32)"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_target_not_finite_where_no_rule_is_asked(bad: float) -> None:
    logits = even(2, 3, 4)
    logits[1, 2, 3] = bad
    scores = Scores(logits, torch.zeros(2, 3, 1), SamplingParams())
    with pytest.raises(InputError, match="got NaN or infinity at row 1, node 2"):
        greedy_verdict(TokenTree(TOKENS, CHAIN), scores)
    padded = TokenTree(torch.tensor([[0, 1, 2], [0, 1, -1]]), torch.tensor([[-1, 0, 1], [-1, 0, -1]]))
    assert greedy_verdict(padded, scores).next_token.min() >= 0


@by_name
def test_padding_may_hold_anything(rule: AcceptanceRule) -> None:
    p = even(2, 3, 4)
    p[1, 2] = float("nan")
    tree = TokenTree(torch.tensor([[0, 1, 2], [0, 1, -1]]), torch.tensor([[-1, 0, 1], [-1, 0, -1]]))
    assert rule.accept(tree, p, DRAWS).next_token.max() < 4


@by_name
def test_target_scored_another_tree(rule: AcceptanceRule) -> None:
    assert message(rule, TokenTree(TOKENS, CHAIN), even(2, 2, 4)) == (
        "target_probs: expected p at every node, (2, 3), got (2, 2); score the tree that is verified"
    )


def trees(rule: AcceptanceRule, q: Tensor) -> TokenTree:
    return TokenTree(TOKENS, CHAIN, q, replacement=rule.name != "without_replacement")


FIX = "return from propose() the distribution that the children were drawn from"


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: rule.name)
def test_q_of_another_vocabulary(rule: AcceptanceRule) -> None:
    assert message(rule, trees(rule, even(2, 3, 5)), even(2, 3, 4)) == (
        "tree.probs: expected q over the target's vocabulary of 4 tokens, got 5; map the drafter's tokens to the "
        "target's"
    )


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: rule.name)
@pytest.mark.parametrize(("factor", "total"), [(2.0, "2"), (0.0, "0"), (float("nan"), "nan")])
def test_q_not_a_distribution(rule: AcceptanceRule, factor: float, total: str) -> None:
    q = even(2, 3, 4)
    q[1, 1] *= factor
    q[1, 2] = 0  # a leaf says nothing
    assert message(rule, trees(rule, q), even(2, 3, 4)) == (
        f"tree.probs: expected q with sum 1 at every node with children, got sum {total} at row 1, node 1; {FIX}"
    )


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: rule.name)
@pytest.mark.parametrize(("q_x", "got"), [(0.0, "0"), (-0.5, "-0.5"), (1.5, "1.5")])
def test_q_cannot_have_drawn_the_token(rule: AcceptanceRule, q_x: float, got: str) -> None:
    q = even(2, 3, 4)
    q[1, 1] = torch.tensor([1 - q_x, 0, q_x, 0])
    assert message(rule, trees(rule, q), even(2, 3, 4)) == (
        f"tree.probs: expected 0 < q <= 1 for every drafted token, got q = {got} for the token of node 2 of row 1; "
        f"{FIX}"
    )


@pytest.mark.parametrize("arguments", [{"epsilon": 0.0, "alpha": 0.3}, {"epsilon": 0.1, "alpha": 1.0}])
def test_typical_thresholds(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"acceptance\.(epsilon|alpha): expected a number in \(0, 1\), got .*; try"):
        Typical(**arguments)
