"""All shapes of small trees, for proofs that leave none out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any

Shape = tuple[Any, ...]  # the subtrees below a node, themselves shapes


@cache
def shapes(nodes: int) -> tuple[Shape, ...]:
    """Return every shape of a tree with that many drafted nodes; the order of siblings makes no new shape."""
    found = []
    for sizes in partitions(nodes, nodes):
        groups = [combinations_with_replacement(shapes(size - 1), sizes.count(size)) for size in sorted({*sizes})]
        found += [tuple(child for group in choice for child in group) for choice in product(*groups)]
    return tuple(found)


def partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yield the ways of writing `total` as a sum of numbers up to `largest`, largest first."""
    if total == 0:
        yield ()
    for first in range(min(total, largest), 0, -1):
        yield from ((first, *rest) for rest in partitions(total - first, first))


def parents_of(shape: Shape) -> list[int]:
    """Return the parents of a shape's nodes, level by level; -1 for the root."""
    parents, level = [-1], [(0, shape)]
    while level:
        below = []
        for node, children in level:
            for child in children:
                parents.append(node)
                below.append((len(parents) - 1, child))
        level = below
    return parents


def depth_of(parents: list[int]) -> int:
    """Return the depth of a tree's deepest node."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return max(depths)


def chain(depth: int) -> list[int]:
    """Return the parents of a chain."""
    return list(range(-1, depth))
