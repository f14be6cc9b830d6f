"""The conformance suite finds what is wrong, certifies what is right, and its bounds are those of the papers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.exactness.cases import tables
from specdec.exactness.conformance import check
from specdec.exactness.enumeration import Tables, emission
from specdec.exactness.functions import FunctionRule, Uniforms
from specdec.exactness.shapes import chain, depth_of, parents_of, shapes
from specdec.exactness.transport import siblings_bound, tree_bound
from specdec.trees.tree import TokenTree
from tests.specdec.exactness.published import brute_force_bound
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.hsd import Hsd
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.typical import Typical

THIRDS = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)


def pick(probs: Tensor, u: object) -> int:
    for token, edge in enumerate(probs.cumsum(0)[:-1]):
        if u < edge:  # type: ignore[operator]
            return token
    return len(probs) - 1


def naive(p: Tensor, q: Tensor, draft: list[int], uniforms: Uniforms) -> list[int]:
    """Speculative sampling as in arXiv 2211.17192, algorithm 1."""
    for i, x in enumerate(draft):
        if next(uniforms) * q[i, x] > p[i, x]:
            rest = (p[i] - q[i]).clamp(min=0)
            return [*draft[:i], pick(rest / rest.sum(), next(uniforms))]
    return [*draft, pick(p[-1], next(uniforms))]


def keeps_all(p: Tensor, q: Tensor, draft: list[int], uniforms: Uniforms) -> list[int]:
    return [*draft, pick(p[-1], uniforms[0])]


def redraws(p: Tensor, q: Tensor, draft: list[int], uniforms: Uniforms) -> list[int]:
    """Draws from p after a rejection: the error that losslessness proofs warn of."""
    kept = 0
    while kept < len(draft) and uniforms[kept] < p[kept, draft[kept]] / q[kept, draft[kept]]:
        kept += 1
    return [*draft[:kept], pick(p[kept], uniforms[len(draft)])]


def test_a_released_function_is_certified() -> None:
    report = check(FunctionRule(naive, "naive"), nodes=2, depth=2, vocabularies=[2])
    assert report.exact, report.failure or report.counterexample
    accepted = [one for one in report.outcomes if one.case.vocab == 2 and one.case.kind == "mirrored"]
    assert [one.accepted for one in accepted if one.case.nodes == 2 and not one.case.steps] == [pytest.approx(10 / 9)]


@pytest.mark.parametrize("function", [keeps_all, redraws])
def test_a_wrong_function_is_found_in_its_smallest_case(function) -> None:
    report = check(FunctionRule(function, function.__name__), nodes=2, depth=2, vocabularies=[2])
    found = report.counterexample
    assert found is not None
    assert (found.case.nodes, found.case.vocab) == (1, 2)
    assert all(one.case.nodes == 1 for one in report.outcomes)


class Released(Hsd):
    """HSD as released, with the claim of its paper."""

    def __init__(self) -> None:
        super().__init__(capped=False)
        self.lossless = True


def test_the_released_hsd_has_a_counterexample() -> None:
    """p = (1/3, 2/3), q = (2/3, 1/3), two drafted tokens: (1, 0) comes with 1/3 instead of 2/9."""
    report = check(Released(), nodes=2, depth=2, vocabularies=[2])
    found = report.counterexample
    assert found is not None
    assert (found.case.nodes, found.case.vocab, found.case.kind) == (2, 2, "mirrored")
    assert found.variation == pytest.approx(0.1111, abs=5e-5)
    two_thirds = Tables([THIRDS.expand(2**d, 2).clone() for d in range(3)])
    q = Tables([THIRDS.flip(0).expand(2**d, 2).clone() for d in range(2)])
    emitted = emission(Hsd(capped=False), (1, 1), two_thirds, q, "with_replacement")
    pairs = emitted.joint.view(2, 2, 2).sum(-1)
    assert [Fraction(float(x)).limit_denominator(99) for x in pairs.flatten()] == [
        Fraction(1, 9), Fraction(2, 9), Fraction(1, 3), Fraction(1, 3),
    ]  # fmt: skip
    assert emitted.accepted == pytest.approx(4 / 3)


def test_the_capped_hsd_is_block() -> None:
    for seed in range(3):
        p, q = tables("random", 3, 3, seed)
        ours, block = (emission(rule, (1, 1, 1), p, q, "with_replacement") for rule in (Hsd(), BlockVerification()))
        torch.testing.assert_close(ours.joint, p.joint(), atol=1e-12, rtol=0)
        assert ours.accepted == pytest.approx(block.accepted, abs=1e-12)


def test_exact_rules_are_certified_on_all_small_trees() -> None:
    for rule in (Exact(), Traversal()):
        report = check(rule, nodes=2, depth=1, vocabularies=[2])
        assert report.exact, report.failure or report.counterexample
        for one in report.outcomes:
            if one.bound is not None and one.accepted is not None:
                assert one.accepted <= one.bound + 1e-9


def test_a_lossy_rule_has_its_price() -> None:
    report = check(Typical(0.09, 0.3), nodes=1, depth=1, vocabularies=[3])
    assert not report.failure
    assert 0 < report.variation <= 1


class Wrong:
    name, lossless, exact_for = "wrong", True, Exact.exact_for

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        raise NotImplementedError


class Raises(Wrong):
    pass


class Outside(Wrong):
    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        return Verdict(torch.ones_like(tree.tokens), draws.categorical(target_probs[:, 0], 0))


class Twice(Wrong):
    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        draws.categorical(target_probs[:, 0], 0)
        return Exact().accept(tree, target_probs, draws)


class Shifted(Wrong):
    """Adds a number from elsewhere to the next token."""

    def __init__(self, number) -> None:
        self.number = number

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        verdict = Exact().accept(tree, target_probs, draws)
        return Verdict(verdict.path, (verdict.next_token + int(self.number() * 1e6)) % target_probs.shape[-1])


class Remembers(Wrong):
    calls = 0

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        Remembers.calls += 1
        verdict = Exact().accept(tree, target_probs, draws)
        return Verdict(verdict.path, (verdict.next_token + Remembers.calls) % target_probs.shape[-1])


class Changes(Wrong):
    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        verdict = Exact().accept(tree, target_probs, draws)
        target_probs[:, 0] = 0.5
        return verdict


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Raises(), "it raises NotImplementedError"),
        (Outside(), "expected a path from the root, padded with -1, got path [1, 1"),
        (Twice(), "expected one decision for each slot, by the drafter or by the rule, got a second one in a step"),
        (Shifted(lambda: torch.rand(()).item()), "got one that depends on global random state"),
        (Shifted(np.random.rand), "got one that depends on global random state"),
        (Shifted(random.random), "got one that depends on global random state"),
        (Shifted(np.random.default_rng().random), "got another one when the same outcomes were drawn again"),
        (Remembers(), "got another one when the same outcomes were drawn again"),
        (Changes(), "expected p and the tree as they were, got changed ones"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Wrong) else "",
)
def test_faults_are_named(rule: Wrong, said: str) -> None:
    report = check(rule, nodes=2, depth=2, vocabularies=[3])
    assert said in report.failure
    assert ", with a " in report.failure
    assert not report.exact


def bad_function(kind: str):
    def function(p: Tensor, q: Tensor, draft: list[int], uniforms: Uniforms) -> Sequence[int]:
        if kind == "raises":
            raise KeyError("x")
        if kind == "outside":
            return [1 - draft[0], 0, 0] if draft else [0]
        if kind == "number":
            return [int(float(uniforms[0]) * 2)]
        if kind == "endless":
            while uniforms[0] < 1 / (2 + next(counter)):
                pass
        if kind == "global":
            return [int(torch.randint(2, (1,)))]
        return [next(counter) % 2]

    counter = iter(range(10**9))
    return FunctionRule(function, "mine")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "it raises KeyError"),
        ("outside", "a path outside the tree"),
        ("number", "got one that is turned into a number"),
        ("endless", "expected at most 10000 comparisons, got more"),
        ("global", "got one that depends on global random state"),
        ("counts", "got another one when the same outcomes were drawn again"),
    ],
)
def test_faults_of_functions_are_named(kind: str, said: str) -> None:
    assert said in check(bad_function(kind), nodes=1, depth=1, vocabularies=[2]).failure


FORMS = [
    lambda u, x: u < x, lambda u, x: x > u, lambda u, x: 1 - u > 1 - x, lambda u, x: u * 2 <= 2 * x,
    lambda u, x: not u - x >= 0, lambda u, x: np.float64(x) > u, lambda u, x: -u > -x,
    lambda u, x: u / 2 + 1 < 1 + x / 2, lambda u, x: not x < u, lambda u, x: 0.5 * u < 0.5 * float(x),
]  # fmt: skip


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_uniforms_split_at_every_kind_of_comparison(form: int) -> None:
    def function(p: Tensor, q: Tensor, draft: list[int], uniforms: Uniforms) -> list[int]:
        return [0 if FORMS[form](uniforms[0], p[0, 0]) else 1]

    report = check(FunctionRule(function, "forms"), nodes=1, depth=1, vocabularies=[2])
    assert report.exact, report.failure or report.counterexample


def test_all_trees_are_counted() -> None:
    """Rooted trees with 2, 3, ... 7 nodes: 1, 2, 4, 9, 20, 48 (Cayley's count, OEIS A000081)."""
    assert [len(shapes(n)) for n in range(1, 7)] == [1, 2, 4, 9, 20, 48]
    found = [tuple(parents_of(shape)) for shape in shapes(5)]
    assert len(set(found)) == 20
    assert all(parent < node for parents in found for node, parent in enumerate(parents))
    assert tuple(chain(5)) in found
    assert depth_of(chain(5)) == 5


@pytest.mark.parametrize("how", ["with_replacement", "without_replacement"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_bound_of_siblings_is_the_transport_between_drafts_and_texts(k: int, how: str) -> None:
    for kind in ("random", "mirrored", "peaked"):
        p, q = tables(kind, 3, 1, seed=k)
        bound = siblings_bound(p.levels[0][0], q.levels[0][0], k, how == "with_replacement")
        assert tree_bound([-1, *[0] * k], p, q, how) == pytest.approx(bound, abs=1e-7)
        if how == "with_replacement":
            assert bound == pytest.approx(brute_force_bound(p.levels[0][0], q.levels[0][0], k), abs=1e-12)
