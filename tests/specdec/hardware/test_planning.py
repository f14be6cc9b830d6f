"""The best tree at a point, against every tree there is, and where nothing pays."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from specdec.errors import InputError
from specdec.hardware import FREE, DraftCost
from specdec.hardware.planning import Planner, levels

RATES = [[0.6, 0.2], [0.5, 0.3], [0.4, 0.1]]


class Linear:
    """A forward of n nodes in b rows takes 1 + slope (n b - 1)."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return 1 + self.slope * (nodes * batch - 1)


def every_tree(most: int) -> list[tuple[tuple[int, ...], ...]]:
    """All sets of at most `most` paths that hold the parents of their members."""
    paths = [path for depth in (1, 2, 3) for path in product((0, 1), repeat=depth)]
    sets = (chosen for size in range(1, most + 1) for chosen in combinations(paths, size))
    return [chosen for chosen in sets if all(len(p) == 1 or p[:-1] in chosen for p in chosen)]


def expected(tree: tuple[tuple[int, ...], ...]) -> float:
    total = 1.0
    for path in tree:
        right = 1.0
        for depth, rank in enumerate(path):
            right *= RATES[depth][rank]
        total += right
    return total


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("level", [0.0, 0.1, 0.3])
def test_it_is_the_best_of_all_trees(slope: float, level: float) -> None:
    verify, draft = Linear(slope), DraftCost(level=Linear(0.0)) if level else DraftCost()
    if level:
        draft = DraftCost(level=Scaled(level))
    speeds = [expected(t) / (verify.seconds(len(t) + 1) + draft.seconds(levels(t))) for t in every_tree(5)]
    best = Planner(RATES, verify, draft, most_nodes=5).best(1, 512)
    assert best.tokens_per_second == pytest.approx(max(1.0, *speeds))


class Scaled:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return self._seconds


def test_nothing_is_drafted_where_nothing_pays() -> None:
    plan = Planner(RATES, Linear(0.7), DraftCost(FREE, FREE)).best(1, 512)
    assert plan.paths == ()
    assert plan.speedup == plan.tokens_per_step == 1
    assert plan.tokens_per_second == plan.plain_tokens_per_second


def test_larger_batches_have_smaller_trees() -> None:
    plans = [Planner(RATES, Linear(0.05), DraftCost(), 14).best(batch, 512) for batch in (1, 2, 8, 64)]
    sizes = [len(plan.paths) for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert plans[0].levels == levels(plans[0].paths)
    assert sum(plans[0].levels) == sizes[0]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([], "expected a list of acceptances for each depth"),
        ([[0.5], []], "expected a list of acceptances for each depth"),
        ([[0.5], [0.8, 0.9]], "acceptance at depth 2: expected probabilities of siblings, at most 1 together"),
        ([[-0.1]], "acceptance at depth 1: expected probabilities"),
    ],
)
def test_bad_acceptances(rates: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match="acceptance") as error:
        Planner(rates, Linear(0.1), DraftCost())
    assert message in str(error.value)
