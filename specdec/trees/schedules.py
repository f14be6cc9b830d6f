"""Prescribed acceptance: how often a drafted token is right, by depth and rank.

The drafter `oracle` and the rule `forced` follow such a schedule, so that a loop, a kernel or a server is measured at
any number of tokens per step without a trained drafter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from specdec.errors import InputError
from specdec.trees.topology import IndexPath

Rates = list[list[float]]  # [depth][rank]: how often the child of that rank is right if its parent is
CHAIN = (1.0,)  # shares of the ranks if only first children are ever right
HALVINGS = 60  # of the interval in which a schedule's one parameter is searched; leaves an error below 1e-15


def constant(level: float, depth: int) -> list[float]:
    """Return the same rate at every depth. `level` from 0 to `depth` stands for rates from 0 to 1."""
    return [level / depth] * depth


def minimum_variance(level: float, depth: int) -> list[float]:
    """Return rates under which the number of accepted tokens varies least: 1 at first, then the rest, then 0.

    level: accepted tokens per step of a chain; 2.78 gives 1, 1, 0.78, 0, ...
    """
    return [min(max(level - d, 0.0), 1.0) for d in range(depth)]


SCHEDULES: dict[str, Callable[[float, int], list[float]]] = {
    "constant": constant,
    "minimum_variance": minimum_variance,
}


def scheduled(
    schedule: str,
    tokens_per_step: float,
    paths: Sequence[IndexPath],
    shares: Sequence[float] = CHAIN,
    where: str = "drafter",
) -> Rates:
    """Return the rates at which a tree gives a number of tokens per step on average.

    Args:
        schedule: one of `SCHEDULES`.
        tokens_per_step: the average; plain decoding is 1.
        paths: index paths of the tree's nodes.
        shares: share of each rank in the rate of its depth, best first.
        where: option group used in error messages.

    Raises:
        InputError: an unknown schedule, shares that are none, or more tokens per step than the tree can give.
    """
    if schedule not in SCHEDULES:
        expected = f"one of {', '.join(SCHEDULES)}"
        raise InputError(f"{where}.schedule", expected=expected, got=repr(schedule), fix="choose one")
    if not shares or min(shares) < 0 or not 0 < sum(shares) <= 1 + 1e-9:
        expected = "shares >= 0 that add up to at most 1"
        raise InputError(f"{where}.shares", expected=expected, got=list(shares), fix="try [1.0], or [0.7, 0.2, 0.1]")
    depth = max(map(len, paths))

    def rates(level: float) -> Rates:
        return [[rate * share for share in shares] for rate in SCHEDULES[schedule](level, depth)]

    most = expected_tokens(rates(depth), paths)
    if not 1 <= tokens_per_step <= most + 1e-9:
        expected, fix = f"1 to {most:.6g}, which the tree can give", "lower it, or draft a larger tree"
        raise InputError(f"{where}.tokens_per_step", expected=expected, got=tokens_per_step, fix=fix)
    low, high = 0.0, float(depth)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = expected_tokens(rates(middle), paths) >= tokens_per_step
        low, high = (low, middle) if enough else (middle, high)
    return rates(high)


def expected_tokens(rates: Rates, paths: Sequence[IndexPath]) -> float:
    """Return the tokens per step of a tree: 1 for the target's own token, and the chance of every path."""
    return 1.0 + sum(chance(rates, path) for path in paths)


def chance(rates: Rates, path: IndexPath) -> float:
    """Return the chance that every token on a path is right; 0 if it leads out of the table."""
    if len(path) > len(rates) or any(rank >= len(level) for rank, level in zip(path, rates, strict=False)):
        return 0.0
    return prod(rates[depth][rank] for depth, rank in enumerate(path))


def given(rates: Sequence[float] | Sequence[Sequence[float]], where: str = "drafter") -> Rates:
    """Return a table of rates: one number per depth (of the first child), or a list per depth with one per rank.

    Raises:
        InputError: no rates, one outside [0, 1], or ranks of one depth that add up to more than 1.
    """
    table = [[float(level)] if isinstance(level, int | float) else [float(r) for r in level] for level in rates]
    if not table or not all(level and min(level) >= 0 and sum(level) <= 1 + 1e-9 for level in table):
        expected = "rates in [0, 1] per depth, or lists of them per rank that add up to at most 1"
        raise InputError(f"{where}.rates", expected=expected, got=list(rates), fix="try [0.8, 0.6, 0.5]")
    return table


def of_lengths(lengths: Sequence[float], where: str = "drafter") -> Rates:
    """Return the rates of a chain from a published curve: tokens per step with 1, 2, 3, ... drafted tokens.

    With k drafted tokens a chain gives 1 + P(1 right) + ... + P(k right), so the curve rises, by ever less. A curve
    that does not comes from separate runs, or from a drafter that drafts otherwise with another k.

    Raises:
        InputError: names the first place at which the curve cannot be that of one chain.
    """
    survival = [1.0] + [after - before for before, after in pairwise([1.0, *map(float, lengths)])]
    for k, (before, after) in enumerate(pairwise(survival), 1):
        if not 0 <= after <= before + 1e-9:
            expected = "tokens per step of chains of 1, 2, 3, ... tokens, which rise by ever less"
            got = f"a step of {after:+.4g} at {k} after one of {before:+.4g}"
            fix = "use the part before it, or average more runs"
            raise InputError(f"{where}.lengths", expected=expected, got=got, fix=fix)
    if len(survival) == 1:
        raise InputError(f"{where}.lengths", expected="at least one number", got="none", fix="try [1.8, 2.4]")
    return [[min(after / before, 1.0) if before > 0 else 0.0] for before, after in pairwise(survival)]
