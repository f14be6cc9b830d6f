"""The window of lookahead decoding: its columns are paths, and the target's words after them become n-grams."""

from __future__ import annotations

import pytest

from drafters.lookahead import Lookahead
from specdec.decoding.generate import speculative
from specdec.decoding.protocols import DraftState, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree, histories
from tests.support.states import kept
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention


def paths(tree: TokenTree) -> list[list[int]]:
    return histories(tree, [[int(tree.tokens[0, 0])]])


def test_window_and_ngrams_are_paths_of_one_tree(tiny: TargetModel) -> None:
    drafter = Lookahead(window=2, ngram=3, guesses=1)
    row = [1, 2, 3, 1]
    drafter.start(Session(tiny, [row], SamplingParams(), 50))
    (text,) = drafter._texts
    text.levels = [[4, 5], [6, 7]]
    streams = Streams([[0]], SamplingParams(), tiny.device)
    tree = drafter.propose(DraftState([row], kept([[0]]), [20], streams))
    found = paths(tree)
    for path in ([1, 2, 3], [1, 4, 6], [1, 4, 5, 7]):  # the prompt's n-gram after 1, and both columns
        assert path in found
    assert tree.nodes <= drafter.max_nodes
    tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
    words = [0] * len(tokens)
    words[found.index([1, 4, 6])], words[found.index([1, 4, 5, 7])] = 8, 9
    text.read(tokens, parents, words)
    assert text.levels == [[6, 7], [8, 9]]
    assert list(text.pool[4]) == [(6, 8)]
    assert list(text.pool[5]) == [(7, 9)]


def test_a_node_that_was_left_out_keeps_its_guess(tiny: TargetModel) -> None:
    drafter = Lookahead(window=1, ngram=2, guesses=1, prompt=False)
    drafter.start(Session(tiny, [[1]], SamplingParams(), 50))
    (text,) = drafter._texts
    text.levels = [[5]]
    text.read([1], [-1], [3])
    assert text.levels == [[5]]
    assert not text.pool


def test_text_that_repeats_itself_is_drafted(tiny: TargetModel) -> None:
    stop = StopRule(40, frozenset())
    done = speculative([[5, 6, 7]], Lookahead(4, 3, 4), TreeAttention(tiny), Exact(), SamplingParams(), stop, [[0]])
    assert StepMetrics.of(done.steps).tokens_per_step > 1.2


def test_options_out_of_range_are_one_line() -> None:
    for options in ((0, 3, 1), (1, 1, 1), (1, 3, 0)):
        with pytest.raises(InputError, match="expected an integer >= "):
            Lookahead(*options)
