"""Proof by enumeration: every YAML of conf/acceptance that is declared lossless leaves the target's joint distribution
as it is, to 1e-12, and rules that do not are found."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from experiments.common.parts import part
from specdec.decoding.protocols import AcceptanceRule, ExactFor, LosslessRule, Verdict
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.exactness.enumeration import Tables, emission
from specdec.exactness.rules import prove_rule, require_proven
from specdec.trees.tree import TokenTree
from tests.support.configs import group
from tests.verifiers.acceptance.wrong_rules import WRONG, KeepsEveryToken, PlainJointRatio
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.typical import Typical


@pytest.mark.parametrize("choice", group("acceptance"))
def test_a_lossless_rule_is_proven(choice: str) -> None:
    rule: AcceptanceRule = instantiate(part("acceptance", choice))
    findings = prove_rule(rule)
    assert bool(findings) == rule.lossless == isinstance(rule, LosslessRule)
    for finding in findings:
        assert finding.passed, f"{finding.what}: {finding.failure}"
    if rule.lossless:
        assert sum(finding.outcomes for finding in findings) > 2000


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.name)
def test_a_wrong_rule_is_found_and_refused(rule: AcceptanceRule) -> None:
    with pytest.raises(InputError, match=f"acceptance={rule.name}: expected the target's distribution"):
        require_proven(rule)


def test_the_refusal_names_the_case() -> None:
    with pytest.raises(InputError) as error:
        require_proven(KeepsEveryToken())
    assert str(error.value) == (
        "acceptance=keeps_every_token: expected the target's distribution, as lossless = True declares, got a "
        "probability that is 0.22 off with 2 tokens, widths [1, 1], mirrored p and q (children with_replacement, 2 "
        "kinds of p and q, 2 shapes); mend it, or declare lossless = False (`python -m experiments.prove "
        "acceptance=keeps_every_token` shows every check)"
    )


def test_a_joint_ratio_is_exact_only_if_the_last_token_is_capped_too() -> None:
    """p = (1/3, 2/3), q = (2/3, 1/3), two drafted tokens."""
    p, q = (
        Tables([torch.tensor(row, dtype=torch.float64).expand(2**d, 2).clone() for d in range(depth)])
        for row, depth in (([1 / 3, 2 / 3], 3), ([2 / 3, 1 / 3], 2))
    )
    released, capped = (emission(PlainJointRatio(c), [1, 1], p, q, "with_replacement").joint for c in (False, True))
    assert float((released - p.joint()).abs().max()) > 1e-3
    assert float((capped - p.joint()).abs().max()) < 1e-12
    require_proven(PlainJointRatio(capped=True))


def test_a_lossy_rule_claims_nothing() -> None:
    assert prove_rule(Typical(0.09, 0.3)) == []


class Undeclared:
    name, lossless = "undeclared", True

    def accept(self, tree: TokenTree, target_probs: torch.Tensor, draws: Draws) -> Verdict:
        return Exact().accept(tree, target_probs, draws)


def test_a_lossless_rule_must_declare_its_trees() -> None:
    with pytest.raises(InputError) as error:
        prove_rule(Undeclared())
    assert str(error.value) == (
        "acceptance=undeclared: expected a lossless rule with `exact_for`, the trees on which it keeps the target's "
        "distribution, got none; declare exact_for = ExactFor(...), or lossless = False (docs/adding-a-rule.md)"
    )


@pytest.mark.parametrize("children", [(), ("twins",)])
def test_at_least_one_kind_that_exists_is_declared(children: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"exact_for\.children: expected one or more of with_replacement, without_"):
        ExactFor(children)


def test_the_rule_that_refusals_advise_takes_every_tree() -> None:
    assert {"top_k", "with_replacement", "without_replacement"} == set(Traversal.exact_for.children)
    assert Traversal.exact_for.siblings
