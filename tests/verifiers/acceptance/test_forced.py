"""The forced rule keeps nodes as often as prescribed, at any temperature and whatever p says."""

from __future__ import annotations

import math

import pytest
import torch

from specdec.decoding.generate import speculative
from specdec.decoding.protocols import DraftState
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.exactness.cases import tables
from specdec.exactness.enumeration import emission
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from verifiers.acceptance.forced import Forced
from verifiers.tree_attention import TreeAttention

FIVE_SIGMA = 5.0  # standard errors; a right rule fails with probability 6e-7


@pytest.mark.parametrize("kind", ["random", "peaked", "disjoint"])
@pytest.mark.parametrize("how", ["top_k", "with_replacement", "without_replacement"])
def test_expected_accepted_tokens_by_enumeration(kind: str, how: str) -> None:
    p, q = tables(kind, 4, 2, seed=0)
    rule = Forced(rates=[[0.5, 0.2], [0.4]])
    drawn = emission(rule, (2, 1), p, q, how).accepted
    if not (kind == "disjoint" and how == "without_replacement"):
        assert drawn == pytest.approx(0.7 + 0.7 * 0.4)
    assert emission(Forced(depth=2, tokens_per_step=2.5), (1, 1), p, q, how).accepted == pytest.approx(1.5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_through_the_loop_at_any_temperature(tiny: TargetModel, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature)
    steps = speculative([[1, 2]], _Zeros(4), TreeAttention(tiny), Forced(), sampling, StopRule(900), [[0]]).steps
    whole = [step.accepted for step in steps if step.offered == 4]
    mean = sum(whole) / len(whole)
    assert abs(mean - 2.0) < FIVE_SIGMA * math.sqrt(4 / len(whole))
    assert StepMetrics.of(steps).tokens_per_step == pytest.approx(3.0, abs=0.7)


class _Zeros:
    """Drafts a chain of one token."""

    def __init__(self, depth: int) -> None:
        self.max_nodes = depth + 1

    def start(self, session: object) -> None:
        pass

    def propose(self, state: DraftState) -> TokenTree:
        root = torch.tensor([[row[-1]] for row in state.rows])
        tokens = torch.cat([root, torch.zeros(len(root), self.max_nodes - 1, dtype=torch.long)], 1)
        return TokenTree(tokens, torch.arange(-1, self.max_nodes - 1).expand_as(tokens))


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"acceptance.depth: expected an integer >= 1, got 0"):
        Forced(depth=0)
    with pytest.raises(InputError, match=r"acceptance.tokens_per_step: expected 1 to 5, which the tree can give"):
        Forced(tokens_per_step=9)
    with pytest.raises(InputError, match=r"acceptance.rates: expected rates or lengths, got both"):
        Forced(rates=[0.5], lengths=[1.5])
