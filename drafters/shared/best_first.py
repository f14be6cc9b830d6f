"""Grow a tree from guesses that know their followers: always add the most probable path."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count
from typing import TypeVar

from specdec.trees.tree import PAD

Cursor = TypeVar("Cursor")
Follower = tuple[int, float, Cursor]  # token, its probability after the cursor, the cursor after it


def best_first(
    root: int,
    seeds: Iterable[Cursor],
    followers: Callable[[Cursor, int], Iterable[Follower[Cursor]]],
    nodes: int,
    least: float = 0.0,
) -> tuple[list[int], list[int], list[float]]:
    """Return tokens, parents and confidences of the tree of the most probable paths.

    The probability of a path is the product along it. Paths of several seeds are merged on shared prefixes; a node that
    several propose has the largest of their probabilities.

    Args:
        root: token of the root.
        seeds: cursors that stand at the root, one per source of guesses.
        followers: maps a cursor and its depth (0 at the root) to what may follow.
        nodes: largest number of drafted nodes, the root not counted.
        least: leave out paths that are less probable.

    For independent guesses this tree has the largest expected number of accepted tokens (arXiv 2401.10774, 2.3.3).
    """
    tokens, parents, confidence, depth = [root], [PAD], [1.0], [0]
    child: dict[tuple[int, int], int] = {}
    order = count()  # equally probable paths come in the order in which they were found
    frontier: list[tuple[float, int, int, int, float, Cursor]] = []

    def expand(node: int, path: float, cursor: Cursor) -> None:
        for token, sure, behind in followers(cursor, depth[node]):
            if path * sure >= least:
                heapq.heappush(frontier, (-path * sure, next(order), node, token, sure, behind))

    for seed in seeds:
        expand(0, 1.0, seed)
    while frontier and len(tokens) <= nodes:
        path, _, parent, token, sure, cursor = heapq.heappop(frontier)
        node = child.setdefault((parent, token), len(tokens))
        if node == len(tokens):
            tokens.append(token)
            parents.append(parent)
            confidence.append(sure)
            depth.append(depth[parent] + 1)
        expand(node, -path, cursor)
    return tokens, parents, confidence
