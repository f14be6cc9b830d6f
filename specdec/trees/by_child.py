"""The best tree if acceptances are by child number: child j is drafted only after child j - 1.

If the acceptances fall from child to child, sorting paths finds the same tree (`topology.best_tree`). If they do not,
sorting would draft a later child without the earlier ones, which promises too much. This is the dynamic programme of
Sequoia over size and depth (arXiv 2402.12374).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from specdec.errors import InputError
from specdec.trees.topology import IndexPath


def best_by_child(rates: Sequence[float], nodes: int, depth: int) -> tuple[list[IndexPath], float]:
    """Return the best tree with that many drafted nodes, and its expected tokens per step.

    Args:
        rates: acceptance of child 0, 1, 2, ... of any node.
        nodes: drafted nodes, the root not counted.
        depth: largest depth.

    Raises:
        InputError: no rates, one outside [0, 1], or no tree of that size and depth.
    """
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise InputError("acceptance", expected="rates in [0, 1], one per child", got=list(rates), fix="measure them")

    @cache
    def family(size: int, child: int, levels: int) -> tuple[float, tuple[int, ...]]:
        """Best value of `size` nodes below one node, in subtrees of its children from `child` on, and their sizes."""
        if size == 0:
            return 0.0, ()
        if levels == 0 or child == len(rates):
            return -1.0, ()
        best: tuple[float, tuple[int, ...]] = (-1.0, ())
        for own in range(1, size + 1):
            below, rest = family(own - 1, 0, levels - 1), family(size - own, child + 1, levels)
            if below[0] >= 0 and rest[0] >= 0:
                value = rates[child] * (1 + below[0]) + rest[0]
                best = max(best, (value, (own, *rest[1])), key=lambda found: found[0])
        return best

    def paths(size: int, levels: int, prefix: IndexPath) -> list[IndexPath]:
        found: list[IndexPath] = []
        for child, own in enumerate(family(size, 0, levels)[1]):
            found += [(*prefix, child), *paths(own - 1, levels - 1, (*prefix, child))]
        return found

    value = family(nodes, 0, depth)[0]
    if nodes < 1 or value < 0:
        fix = "lower it, raise the depth, or measure more children"
        raise InputError("nodes", expected=f"a tree of depth {depth} with {len(rates)} children", got=nodes, fix=fix)
    return paths(nodes, depth, ()), 1 + value
