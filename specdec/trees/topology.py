"""Static trees: which candidates of which position are drafted, whatever their tokens are.

A tree is a list of index paths (Medusa's `medusa_choices`): [1, 0] is the best candidate of the second
position, under the second-best candidate of the first. Depends on no tokens and no model.

    paths  [0] [1] [0,0] [0,1] [1,0]            root
                                              /      \\
                                           [0]        [1]
                                          /    \\         \\
                                      [0,0]  [0,1]      [1,0]
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from specdec.errors import InputError

IndexPath = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The shape of a static tree.

    paths: one for each drafted node, level by level, so that siblings are neighbours. Node 0 is the root, node i + 1
    ends paths[i].
    """

    paths: tuple[IndexPath, ...]

    @classmethod
    def of(cls, paths: object, what: str = "drafter.tree") -> Topology:
        """Build a topology from a list of index paths in any order, as a config or a file gives them.

        `what`: name used in error messages.

        Raises:
            InputError: no paths, one that is not a list of integers >= 0, one given twice, or one whose parent is
                missing.
        """
        expected = "index paths, like [[0], [1], [0, 0]]"
        if isinstance(paths, str) or not isinstance(paths, Sequence) or not paths:
            raise InputError(what, expected=expected, got=repr(paths), fix="write at least one path")
        for path in paths:
            if isinstance(path, str) or not isinstance(path, Sequence) or not path or not all(map(_is_rank, path)):
                raise InputError(what, expected=expected, got=f"the path {path!r}", fix="count from 0")
        ordered = sorted(map(tuple, paths), key=lambda path: (len(path), path))
        known = Counter(ordered)
        for path in ordered:
            if known[path] > 1:
                raise InputError(what, expected="every path once", got=f"{list(path)} twice", fix="remove one")
            if len(path) > 1 and path[:-1] not in known:
                raise InputError(
                    what,
                    expected="every path's parent among the paths",
                    got=f"{list(path)} without {list(path[:-1])}",
                    fix="add the parent, or remove the path",
                )
        return cls(tuple(ordered))

    @property
    def nodes(self) -> int:
        """Number of nodes, root included."""
        return len(self.paths) + 1

    @property
    def depth(self) -> int:
        return len(self.paths[-1])

    @property
    def ranks(self) -> int:
        """Number of candidates needed at each position: the largest index plus one."""
        return max(max(path) for path in self.paths) + 1

    @cached_property
    def parents(self) -> Int[Tensor, " nodes"]:
        """Parent of each node; -1 for the root."""
        node = {path: i + 1 for i, path in enumerate(self.paths)}
        return torch.tensor([-1, *(node.get(path[:-1], 0) for path in self.paths)])

    @cached_property
    def candidates(self) -> Int[Tensor, " drafted"]:
        """Index of each drafted node's candidate in a flattened table [depth, ranks]."""
        return torch.tensor([(len(path) - 1) * self.ranks + path[-1] for path in self.paths])

    @cached_property
    def families(self) -> list[tuple[int, int, range]]:
        """Return (parent node, its depth, its children) for every node with children, level by level."""
        parents = enumerate(self.parents.tolist()[1:], 1)
        found = [(parent, [i for i, _ in group]) for parent, group in groupby(parents, key=lambda item: item[1])]
        return [(p, len(self.paths[c[0] - 1]) - 1, range(c[0], c[-1] + 1)) for p, c in found]

    @cached_property
    def drawn_from(self) -> Int[Tensor, " nodes"]:
        """Depth of each node with children, whose distribution they are drawn from; the tree's depth for leaves, which
        have none."""
        depths = torch.full((self.nodes,), self.depth)
        for parent, depth, _ in self.families:
            depths[parent] = depth
        return depths

    @property
    def only_children(self) -> bool:
        """Whether no node has a sibling."""
        return all(len(children) == 1 for _, _, children in self.families)


def best_tree(accuracies: Sequence[Sequence[float]], nodes: int) -> tuple[list[IndexPath], list[float]]:
    """Return the `nodes` paths with the largest expected number of accepted tokens, best first, and the gain of each.

    If heads were independent, a node would be accepted with the product of the accuracies on its path. That is its gain
    in expected tokens, so the most probable nodes make the best tree, and its first n paths are the best tree of n
    (arXiv 2401.10774, 2.3.3).

    accuracies: [head][rank], how often that candidate of the head is right.

    Raises:
        InputError: accuracies outside [0, 1], or fewer than `nodes` paths in all.
    """
    if not accuracies or not all(accuracies) or not all(0 <= a <= 1 for head in accuracies for a in head):
        raise InputError("accuracies", expected="shares in [0, 1], some of every head", got=accuracies, fix="measure")
    paths: list[IndexPath] = []
    gains: list[float] = []
    frontier: list[tuple[float, IndexPath]] = [(-a, (rank,)) for rank, a in enumerate(accuracies[0])]
    heapq.heapify(frontier)
    while frontier and len(paths) < nodes:
        gain, path = heapq.heappop(frontier)
        paths.append(path)
        gains.append(-gain)
        if len(path) < len(accuracies):
            for rank, a in enumerate(accuracies[len(path)]):
                heapq.heappush(frontier, (gain * a, (*path, rank)))
    return _enough(paths, nodes), gains


def most_frequent_tree(ranks: Int[Tensor, "positions heads"], nodes: int) -> tuple[list[IndexPath], list[float]]:
    """Return the best tree as `best_tree` does, without assuming independence: count how often all candidates of a path
    were right together.

    Heads err together, so the product of accuracies underrates deep nodes.

    ranks: at each position of a text, the rank that each head gave to the next token; -1 if it was not among the
    candidates.

    Raises:
        InputError: fewer than `nodes` paths were ever right.
    """
    paths, gains = frequent_paths(ranks.tolist())
    return _enough(paths[:nodes], nodes), gains[:nodes]


def frequent_paths(ranks: Sequence[Sequence[int]]) -> tuple[list[IndexPath], list[float]]:
    """Return every path that was ever right, most frequent first, and the share of positions at which it was right."""
    counts: Counter[IndexPath] = Counter()
    for row in ranks:
        hit = row[: row.index(-1)] if -1 in row else row
        counts.update(tuple(hit[:length]) for length in range(1, len(hit) + 1))
    # a path is right no more often than its parent: sorted by count, then by length, parents come first
    paths = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    return paths, [counts[path] / len(ranks) for path in paths]


def _enough(paths: list[IndexPath], nodes: int) -> list[IndexPath]:
    if not 0 < nodes <= len(paths):
        raise InputError(
            "nodes", expected=f"1 to {len(paths)}, as many paths as there are", got=nodes, fix="measure more candidates"
        )
    return paths


def _is_rank(index: object) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and index >= 0
