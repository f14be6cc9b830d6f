"""Which rule accepts more, in exact expected accepted length, where theory says so.

- Block verification has the largest expected accepted length of all lossless rules on a chain (arXiv 2403.10444),
  and traversal is block verification there (arXiv 2505.12398).
- One level of siblings: traversal and token by token are one rule, as the root's rate is 1. On deeper trees the
  paper reports more accepted tokens; we know of no theorem for every tree, and check the cases below.
- Two siblings: a rejected x has nothing left in the residual, and without replacement q gives every other token
  more than with, so the second is accepted at least as often. More siblings and levels (arXiv 2402.12374 reports
  more accepted tokens) are checked on the cases below.
- k-sequential selection reaches 1 - (1 - 1/k)^k of the optimum (arXiv 2310.15141).
"""

from __future__ import annotations

import pytest

from specdec.decoding.protocols import AcceptanceRule
from specdec.exactness.cases import KINDS, tables
from specdec.exactness.enumeration import emission
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.spectr import SpecTr
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.without_replacement import WithoutReplacement

ROUNDING = 1e-12
SEEDS = range(3)


def accepted(rule: AcceptanceRule, kind: str, vocab: int, widths: tuple[int, ...], how: str, seed: int) -> float:
    p, q = tables(kind, vocab, len(widths), seed)
    return emission(rule, widths, p, q, how).accepted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_block_accepts_most_on_chains(kind: str, seed: int) -> None:
    case = kind, 4, (1, 1, 1), "with_replacement", seed
    block = accepted(BlockVerification(), *case)
    assert block >= accepted(Exact(), *case) - ROUNDING
    assert block == pytest.approx(accepted(Traversal(), *case), abs=ROUNDING)


def test_block_gains_something() -> None:
    case = "random", 4, (1, 1, 1), "with_replacement", 0
    assert accepted(BlockVerification(), *case) > accepted(Exact(), *case) + 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("vocab", "widths"), [(4, (3,)), (4, (2, 1)), (3, (2, 2)), (3, (1, 2)), (3, (2, 1, 1))])
def test_traversal_accepts_at_least_what_exact_does(vocab: int, widths: tuple[int, ...], seed: int, kind: str) -> None:
    case = kind, vocab, widths, "with_replacement", seed
    assert accepted(Traversal(), *case) >= accepted(Exact(), *case) - ROUNDING
    case = kind, vocab, widths, "without_replacement", seed
    assert accepted(Traversal(), *case) >= accepted(WithoutReplacement(), *case) - ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("vocab", "widths"), [(5, (2,)), (4, (3,)), (3, (2, 1)), (3, (2, 2))])
def test_without_replacement_accepts_at_least_what_with_does(
    vocab: int, widths: tuple[int, ...], seed: int, kind: str
) -> None:
    without = accepted(WithoutReplacement(), kind, vocab, widths, "without_replacement", seed)
    assert without >= accepted(Exact(), kind, vocab, widths, "with_replacement", seed) - ROUNDING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_k_sequential_selection_reaches_its_share_of_the_optimum(kind: str, seed: int) -> None:
    """1 - (1 - 1/k)^k of the most that any rule can accept from k draws, which is at most what p covers of the
    tokens drawn: sum_x min(p(x), 1 - (1 - q(x))^k)."""
    k = 3
    p, q = tables(kind, 4, 1, seed)
    most = float(p.levels[0][0].minimum(1 - (1 - q.levels[0][0]) ** k).sum())
    assert emission(SpecTr(), (k,), p, q, "with_replacement").accepted >= (1 - (1 - 1 / k) ** k) * most - 1e-3
