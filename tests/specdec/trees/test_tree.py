"""TokenTree's invariants, on random trees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import InputError
from specdec.trees.tree import PAD, TokenTree, histories


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list, list]:
    """Tokens and parents of a batch of trees of different sizes."""
    rows = draw(st.integers(1, 3))
    tokens, parents = [], []
    for _ in range(rows):
        size = draw(st.integers(1, 12))
        tokens.append([draw(st.integers(0, 50)) for _ in range(size)])
        parents.append([-1, *(draw(st.integers(0, i - 1)) for i in range(1, size))])
    return tokens, parents


def ancestors(tree: TokenTree, row: int, node: int) -> list[int]:
    """Root first, the node last: the definition, followed one edge at a time."""
    chain = [node]
    while tree.parents[row, chain[0]] >= 0:
        chain.insert(0, int(tree.parents[row, chain[0]]))
    return chain


@given(shapes())
def test_mask_depth_and_paths_follow_the_edges(shape: tuple[list, list]) -> None:
    tree = TokenTree.from_rows(*shape)
    tree.validate(51)
    for row in range(tree.batch):
        for node in range(tree.nodes):
            chain = ancestors(tree, row, node)
            assert tree.ancestor_mask[row, node].nonzero().flatten().tolist() == sorted(chain)
            assert int(tree.depth[row, node]) == len(chain) - 1
            path = tree.path_to(torch.full((tree.batch,), node))[row].tolist()
            assert path == chain + [PAD] * (tree.nodes - len(chain))


@given(shapes())
def test_padding_sees_only_itself_and_is_seen_by_nobody(shape: tuple[list, list]) -> None:
    tree = TokenTree.from_rows(*shape)
    for row, node in (~tree.valid).nonzero().tolist():
        assert tree.ancestor_mask[row, node].sum() == 1
        assert tree.ancestor_mask[row, :, node].sum() == 1


@given(shapes(), st.integers(0, 5))
def test_clipping_keeps_exactly_the_shallow_nodes(shape: tuple[list, list], limit: int) -> None:
    tree = TokenTree.from_rows(*shape)
    clipped = tree.clip(torch.full((tree.batch,), limit))
    clipped.validate(51)
    assert torch.equal(clipped.valid, tree.valid & (tree.depth <= limit))
    assert torch.equal(clipped.tokens[clipped.valid], tree.tokens[clipped.valid])


@given(shapes())
def test_histories_are_committed_text_and_path(shape: tuple[list, list]) -> None:
    tree = TokenTree.from_rows(*shape)
    rows = [[7, 8, int(root)] for root in tree.tokens[:, 0]]
    found = histories(tree, rows)
    for row in range(tree.batch):
        for node in tree.valid[row].nonzero().flatten().tolist():
            drafted = [int(tree.tokens[row, i]) for i in ancestors(tree, row, node)[1:]]
            assert found[row * tree.nodes + node] == rows[row] + drafted


@pytest.mark.parametrize(
    ("tokens", "parents", "message"),
    [
        ([[-1, 2]], [[-1, 0]], "tree: expected a real token with parent -1 as the root"),
        ([[1, 2]], [[-1, 1]], "tree: expected every node's parent to be a real node before it, got parent 1 at node 1"),
        ([[1, -1, 3]], [[-1, -1, 1]], "got parent 1 at node 2 of row 0"),
        ([[1, -1]], [[-1, 0]], "got parent 0 at node 1 of row 0"),
        ([[1, 60]], [[-1, 0]], "tree: expected tokens below 51, got 60; mend the drafter's propose()"),
    ],
)
def test_bad_trees_are_named(tokens: list, parents: list, message: str) -> None:
    with pytest.raises(InputError) as error:
        TokenTree(torch.tensor(tokens), torch.tensor(parents)).validate(51)
    assert message in str(error.value)
