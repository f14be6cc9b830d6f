"""Figures of papers and repositories, recomputed. Numbers carry over with their source; nothing else was copied."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import pytest
import torch

from specdec.errors import InputError
from specdec.exactness.enumeration import Tables, emission
from specdec.exactness.transport import siblings_bound
from specdec.trees.by_child import best_by_child
from specdec.trees.topology import best_tree
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.hsd import Hsd
from verifiers.acceptance.spectr import SpecTr

P, Q = (1 / 3, 2 / 3), (2 / 3, 1 / 3)


def everywhere(row: tuple[float, ...], levels: int) -> Tables:
    values = torch.tensor(row, dtype=torch.float64)
    return Tables([values.expand(len(row) ** d, len(row)).clone() for d in range(levels)])


@pytest.mark.parametrize(
    ("drafted", "exact", "block", "released"),
    [(1, 2 / 3, 2 / 3, 2 / 3), (2, 10 / 9, 11 / 9, 4 / 3), (3, 38 / 27, 5 / 3, 16 / 9),
     (4, 130 / 81, 166 / 81, 62 / 27)],
)  # fmt: skip
def test_block_verifications_example(drafted: int, exact: float, block: float, released: float) -> None:
    """Sun et al., arXiv 2403.10444, introduction: 10/9 and 11/9; 12/9 is the bound with full information, which HSD as
    released (arXiv 2601.05724) reaches by not being exact."""
    p, q = everywhere(P, drafted + 1), everywhere(Q, drafted)
    rules = (Exact(), exact), (BlockVerification(), block), (Hsd(), block), (Hsd(capped=False), released)
    for rule, right in rules:
        assert emission(rule, [1] * drafted, p, q, "with_replacement").accepted == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "q", "k", "bound", "spectr", "recursive"),
    [
        (P, Q, 2, 0.888889, 0.811332, 0.777778),
        ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), 2, 0.86, 0.791264, 0.76),
        ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5), 3, 0.988, 0.857590, 0.808),
        ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4), 2, 0.79, 0.75, 0.72),
        ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4), 3, 0.871, 0.790545, 0.768),
        ((0.1, 0.2, 0.3, 0.4), (0.55, 0.25, 0.15, 0.05), 2, 0.66, 0.622788, 0.60),
        ((0.1, 0.2, 0.3, 0.4), (0.55, 0.25, 0.15, 0.05), 3, 0.742625, 0.703230, 0.68),
    ],
)
def test_optimal_transport(p: tuple, q: tuple, k: int, bound: float, spectr: float, recursive: float) -> None:
    """The bound of Hu et al., arXiv 2502.18779, and how far k-sequential and recursive selection stay below it."""
    tables = everywhere(p, 2), everywhere(q, 1)
    assert siblings_bound(tables[0].levels[0][0], tables[1].levels[0][0], k) == pytest.approx(bound, abs=1e-6)
    assert emission(Exact(), (k,), *tables, "with_replacement").accepted == pytest.approx(recursive, abs=1e-6)
    found = emission(SpecTr(), (k,), *tables, "with_replacement").accepted
    assert spectr - 1e-3 < found <= spectr + 1e-6  # ours stops its search for rho early


# FasterDecoding/Medusa @e2a5d20, assets/medusa_acc.csv: differences of cumulative top-1 ... top-5, 7B, heads 0 to 4
MEDUSA_7B = [
    [0.5604, 0.1113, 0.0554, 0.0328, 0.0200], [0.3164, 0.1072, 0.0615, 0.0431, 0.0343],
    [0.2010, 0.0869, 0.0596, 0.0359, 0.0334], [0.1474, 0.0777, 0.0487, 0.0372, 0.0288],
    [0.1175, 0.0691, 0.0480, 0.0375, 0.0277],
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "tokens"),
    [(4, 1.9091), (8, 2.0698), (16, 2.2230), (26, 2.2946), (31, 2.3172), (42, 2.3492), (63, 2.3845)],
)
def test_medusas_trees(nodes: int, tokens: float) -> None:
    assert 1 + sum(best_tree(MEDUSA_7B, nodes)[1]) == pytest.approx(tokens, abs=6e-4)  # its table has four digits


# Infini-AI-Lab/Sequoia @0ff3ff7, acceptance-rate-vector.pt: children 1 to 32 (child 9 is above child 8)
SEQUOIA = [
    0.63418, 0.10795, 0.05697, 0.02249, 0.01949, 0.01499, 0.0045, 0.0030, 0.01199, 0.0045, 0.0075, 0.0045, 0.0060,
    0.0030, 0.0015, 0.0030, 0.0015, 0.0030, 0, 0.0030, 0.0030, 0.0030, 0, 0.0015, 0, 0.0015, 0, 0, 0, 0.0015, 0.0015,
    0.0015,
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "depth", "tokens"),
    [(2, 9, 1.6342), (4, 9, 2.2914), (8, 9, 2.7322), (16, 9, 3.1303), (8, 3, 2.593264), (16, 3, 2.864509),
     (32, 3, 3.056043), (16, 5, 3.087639)],
)  # fmt: skip
def test_sequoias_trees(nodes: int, depth: int, tokens: float) -> None:
    """Nodes count the root there. The vector is known to five digits."""
    paths, found = best_by_child(SEQUOIA, nodes - 1, depth)
    assert found == pytest.approx(tokens, abs=1e-4)
    assert found == pytest.approx(1 + sum(prod(SEQUOIA[child] for child in path) for path in paths))
    assert all(path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths for path in paths)


def test_sorting_promises_too_much_for_sequoias_vector() -> None:
    """3.060199 for 32 nodes to depth 3, where 3.056043 is right: it drafts child 9 without child 8."""
    assert 1 + sum(best_tree([SEQUOIA] * 3, 31)[1]) == pytest.approx(3.060199, abs=1e-4)


@pytest.mark.parametrize("rates", [[0.5, 0.1, 0.3], [0.2, 0.6, 0.1], [0.4, 0.3, 0.2]])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_trees_by_child_number_against_every_tree(rates: list[float], nodes: int) -> None:
    every = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]
    best = 0.0
    for tree in combinations(every, nodes):
        whole = {(), *tree}
        if all(p[:-1] in whole and (p[-1] == 0 or (*p[:-1], p[-1] - 1) in whole) for p in tree):
            best = max(best, sum(prod(rates[child] for child in path) for path in tree))
    assert best_by_child(rates, nodes, 3)[1] == pytest.approx(1 + best)


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"nodes: expected a tree of depth 1 with 2 children, got 3"):
        best_by_child([0.5, 0.2], 3, 1)
    with pytest.raises(InputError, match=r"acceptance: expected rates in \[0, 1\], one per child"):
        best_by_child([1.5], 1, 1)


@pytest.mark.parametrize(
    ("alpha", "gamma", "operations", "speedup"),
    [(0.6, 2, 1.53, 1.96), (0.7, 3, 1.58, 2.53), (0.8, 2, 1.23, 2.44), (0.8, 5, 1.63, 3.69), (0.9, 2, 1.11, 2.71),
     (0.9, 10, 1.60, 6.86)],
)  # fmt: skip
def test_leviathans_table(alpha: float, gamma: int, operations: float, speedup: float) -> None:
    """arXiv 2211.17192, table 1, drafts at no cost: our expected tokens of a chain."""
    tokens = 1 + sum(best_tree([[alpha]] * gamma, gamma)[1])
    assert tokens == pytest.approx(speedup, abs=6e-3)
    assert (gamma + 1) / tokens == pytest.approx(operations, abs=6e-3)
