"""Static trees from index paths, and the best tree for given accuracies against every tree there is."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import pytest
import torch

from specdec.errors import InputError
from specdec.trees.topology import IndexPath, Topology, best_tree, most_frequent_tree
from specdec.trees.tree import TokenTree


def test_paths_become_nodes_level_by_level() -> None:
    topology = Topology.of([[1, 0], [0], [0, 1], [1], [0, 0], [0, 1, 0]])
    assert topology.paths == ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0))
    assert topology.parents.tolist() == [-1, 0, 0, 1, 1, 2, 4]
    assert (topology.nodes, topology.depth, topology.ranks) == (7, 3, 2)
    table = [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]]
    flat = [candidate for position in table for candidate in position]
    assert [flat[place] for place in topology.candidates] == ["a0", "a1", "b0", "b1", "b0", "c0"]
    assert topology.families == [(0, 0, range(1, 3)), (1, 1, range(3, 5)), (2, 1, range(5, 6)), (4, 2, range(6, 7))]
    assert topology.drawn_from.tolist() == [0, 1, 1, 3, 2, 3, 3]
    assert not topology.only_children
    assert Topology.of([[0], [0, 2]]).only_children
    TokenTree(torch.arange(7)[None], topology.parents[None]).validate(7)


def test_an_index_without_the_ones_before_it_is_a_tree_too() -> None:
    topology = Topology.of([[3], [3, 1]])
    assert topology.parents.tolist() == [-1, 0, 1]
    assert topology.ranks == 4


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[0], [1, 0]], "drafter.tree: expected every path's parent among the paths, got [1, 0] without [1]; add"),
        ([[0], [0]], "drafter.tree: expected every path once, got [0] twice; remove one"),
        ([], "drafter.tree: expected index paths, like [[0], [1], [0, 0]], got []; write at least one path"),
        ([[0], []], "got the path []; count from 0"),
        ([[-1]], "got the path [-1]; count from 0"),
        ([[True]], "got the path [True]; count from 0"),
        ([0, 1], "got the path 0; count from 0"),
        ("[[0]]", "got '[[0]]'; write at least one path"),
    ],
)
def test_paths_that_make_no_tree_are_named(paths: list, message: str) -> None:
    with pytest.raises(InputError) as error:
        Topology.of(paths)
    assert message in str(error.value)


def every_tree(heads: int, ranks: int, nodes: int) -> list[tuple[IndexPath, ...]]:
    """Every set of paths that holds the parents of its members."""
    paths = [path for depth in range(1, heads + 1) for path in product(range(ranks), repeat=depth)]
    return [tree for tree in combinations(paths, nodes) if all(len(path) == 1 or path[:-1] in tree for path in tree)]


def expected_accepted(tree: tuple[IndexPath, ...], accuracies: list[list[float]]) -> float:
    return sum(prod(accuracies[depth][rank] for depth, rank in enumerate(path)) for path in tree)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_tree_is_the_best_of_all_trees(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    accuracies = torch.rand(3, 2, generator=generator, dtype=torch.float64).tolist()
    for nodes in range(1, 6):
        paths, gains = best_tree(accuracies, nodes)
        Topology.of(paths)
        best = max(expected_accepted(tree, accuracies) for tree in every_tree(3, 2, nodes))
        assert sum(gains) == pytest.approx(best, rel=1e-12)
        assert expected_accepted(tuple(paths), accuracies) == pytest.approx(best, rel=1e-12)


def test_the_first_paths_of_a_best_tree_are_the_best_smaller_tree() -> None:
    accuracies = [[0.5, 0.2, 0.1], [0.4, 0.15, 0.05], [0.3, 0.1, 0.02]]
    large, gains = best_tree(accuracies, 12)
    assert gains == sorted(gains, reverse=True)
    for nodes in range(1, 12):
        assert best_tree(accuracies, nodes)[0] == large[:nodes]


def test_a_known_optimum() -> None:
    """0.5, 0.4 and their product 0.25 (0.5 x 0.5), 0.2, 0.2: worked out by hand."""
    paths, gains = best_tree([[0.5, 0.4], [0.5, 0.1]], 4)
    assert paths == [(0,), (1,), (0, 0), (1, 0)]
    assert gains == pytest.approx([0.5, 0.4, 0.25, 0.2])


def test_the_most_frequent_tree_counts_what_was_right_together() -> None:
    """Heads that err together: the product of accuracies (1/2 x 1/2) underrates the path [0, 0]."""
    ranks = torch.tensor([[0, 0]] * 5 + [[1, -1]] * 3 + [[-1, 0]] + [[-1, -1]])
    paths, gains = most_frequent_tree(ranks, 3)
    assert paths == [(0,), (0, 0), (1,)]
    assert gains == [0.5, 0.5, 0.3]
    with pytest.raises(InputError, match=r"nodes: expected 1 to 3, as many paths as there are, got 4; measure more"):
        most_frequent_tree(ranks, 4)


@pytest.mark.parametrize("accuracies", [[], [[]], [[1.5]], [[0.5], []]])
def test_accuracies_that_are_none_are_refused(accuracies: list) -> None:
    with pytest.raises(InputError, match="accuracies: expected shares in"):
        best_tree(accuracies, 1)


def test_more_nodes_than_paths_are_refused() -> None:
    with pytest.raises(InputError, match="nodes: expected 1 to 6"):
        best_tree([[0.5, 0.4], [0.5, 0.1]], 7)
