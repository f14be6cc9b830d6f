"""Schedules give the tokens per step that were asked for, by hand and by their definition."""

from __future__ import annotations

from itertools import product

import pytest

from specdec.errors import InputError
from specdec.trees.schedules import SCHEDULES, chance, expected_tokens, given, of_lengths, scheduled

CHAIN = [(0,) * depth for depth in range(1, 8)]
TREE = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("paths", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("tokens", [1.0, 1.3, 2.0, 2.718])
def test_the_average_is_what_was_asked_for(schedule: str, paths: list, tokens: float) -> None:
    assert expected_tokens(scheduled(schedule, tokens, paths, [0.7, 0.2, 0.1]), paths) == pytest.approx(tokens)


def test_constant_solves_the_geometric_sum() -> None:
    rates = scheduled("constant", 3.78, CHAIN)
    assert len({rate for (rate,) in rates}) == 1
    assert sum(rates[0][0] ** k for k in range(1, 8)) == pytest.approx(2.78)


def test_minimum_variance_keeps_two_always_and_the_third_often() -> None:
    rates = [rate for (rate,) in scheduled("minimum_variance", 3.78, CHAIN)]
    assert rates == pytest.approx([1, 1, 0.78, 0, 0, 0, 0])


def test_a_published_curve_becomes_rates() -> None:
    """GLM-5.2 MTP, 1.84 2.50 2.99: 84 % of the first are right, 66 % of steps reach the second, 49 % the third."""
    rates = of_lengths([1.84, 2.50, 2.99])
    assert [rate for (rate,) in rates] == pytest.approx([0.84, 0.66 / 0.84, 0.49 / 0.66])
    for depth, length in enumerate([1.84, 2.50, 2.99], 1):
        assert expected_tokens(rates, CHAIN[:depth]) == pytest.approx(length)


def test_a_path_out_of_the_table_is_never_right() -> None:
    rates = given([[0.5, 0.25], [0.5]])
    assert (chance(rates, (1, 0)), chance(rates, (1, 1)), chance(rates, (0, 0, 0))) == (0.125, 0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scheduled("linear", 2, CHAIN), "drafter.schedule: expected one of constant, minimum_variance, got"),
        (lambda: scheduled("constant", 8.5, CHAIN), "drafter.tokens_per_step: expected 1 to 8, which the tree can"),
        (lambda: scheduled("constant", 0.5, CHAIN), "drafter.tokens_per_step: expected 1 to 8, which the tree can"),
        (lambda: scheduled("constant", 2, CHAIN, [0.8, 0.4]), "drafter.shares: expected shares >= 0 that add up to"),
        (lambda: given([1.2]), r"drafter.rates: expected rates in \[0, 1\] per depth"),
        (lambda: given([[0.8, 0.3]]), r"drafter.rates: expected rates in \[0, 1\] per depth"),
        (lambda: given([]), r"drafter.rates: expected rates in \[0, 1\] per depth"),
        (lambda: of_lengths([]), "drafter.lengths: expected at least one number, got none"),
        (lambda: of_lengths([1.79, 2.27, 2.20]), r"rise by ever less, got a step of -0.07 at 3 after one of \+0.48"),
        (lambda: of_lengths([1.2, 1.6]), r"rise by ever less, got a step of \+0.4 at 2 after one of \+0.2"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
