"""Prompt lookup on texts whose continuations are known."""

from __future__ import annotations

import pytest

from drafters.ngram import Ngram
from specdec.decoding.protocols import DraftState, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.states import kept


def propose(drafter: Ngram, target: TargetModel, rows: list[list[int]], room: int = 100) -> TokenTree:
    drafter.start(Session(target, rows, SamplingParams(), 100))
    streams = Streams([[0]] * len(rows), SamplingParams(), target.device)
    return drafter.propose(DraftState(rows, kept([[0]] * len(rows)), [room] * len(rows), streams))


def drawn(tree: TokenTree, row: int = 0) -> tuple[list[int], list[int]]:
    size = int(tree.valid[row].sum())
    return tree.tokens[row, :size].tolist(), tree.parents[row, :size].tolist()


def test_the_longest_match_comes_first_then_the_more_recent_and_beginnings_are_shared(tiny: TargetModel) -> None:
    text = [1, 2, 3, 7, 8, 9, 2, 3, 5, 6, 1, 4, 3, 7, 1, 1, 2, 3]
    # "1 2 3" was followed by 7 8; "2 3" by 5 6; "3" most recently by 7 1
    tree = propose(Ngram(3, 1, 2, 3, 10), tiny, [text])
    assert drawn(tree) == ([3, 7, 8, 5, 6, 1], [-1, 0, 1, 0, 3, 1])


def test_a_loop_is_followed_round(tiny: TargetModel) -> None:
    assert drawn(propose(Ngram(3, 2, 5, 1, 10), tiny, [[9, 4, 5, 4, 5, 4, 5]]))[0] == [5, 4, 5, 4, 5, 4]


def test_without_a_match_nothing_is_drafted(tiny: TargetModel) -> None:
    assert drawn(propose(Ngram(3, 2, 5, 2, 10), tiny, [[1, 2, 3, 4]])) == ([4], [-1])


def test_node_limit_and_room_bound_the_tree(tiny: TargetModel) -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert drawn(propose(Ngram(2, 2, 5, 1, 3), tiny, [text]))[0] == [2, 3, 4, 5]
    assert drawn(propose(Ngram(2, 2, 5, 1, 10), tiny, [text], room=3))[0] == [2, 3, 4]


def test_longer_matches_are_followed_further(tiny: TargetModel) -> None:
    drafter = Ngram(3, 1, 5, 1, 10, per_match=2)
    assert drawn(propose(drafter, tiny, [[1, 2, 3, 4, 5, 6, 7, 8, 1]]))[0] == [1, 2, 3]
    assert drawn(propose(drafter, tiny, [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2]]))[0] == [2, 3, 4, 5, 6]
    assert drawn(propose(drafter, tiny, [[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]]))[0] == [3, 4, 5, 6, 7, 8]  # depth
    with pytest.raises(InputError, match="per_match"):
        Ngram(3, 1, 5, 1, 10, per_match=0)


def test_rows_have_trees_of_their_own(tiny: TargetModel) -> None:
    tree = propose(Ngram(2, 2, 3, 1, 10), tiny, [[1, 2, 3, 4, 1, 2], [5, 6, 7]])
    tree.validate(tiny.vocab_size)
    assert [drawn(tree, 0)[0], drawn(tree, 1)[0]] == [[2, 3, 4, 1], [7]]


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"drafter.max_ngram: expected at least min_ngram \(3\), got 2"):
        Ngram(2, 3, 4, 1, 8)
    with pytest.raises(InputError, match=r"drafter.depth: expected an integer >= 1, got 0; raise it"):
        Ngram(2, 1, 0, 1, 8)
