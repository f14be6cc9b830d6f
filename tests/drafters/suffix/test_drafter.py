"""The suffix drafter proposes from the text, from learnt texts and from a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drafters.suffix import Suffix
from drafters.suffix.corpus import Corpus, tokenizer_hash
from specdec.decoding.protocols import DraftState, Learner, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.states import kept

OPTIONS: dict[str, Any] = {"nodes": 20, "per_match": 2, "depth": 20, "least": 0.01}


def propose(drafter: Suffix, target: TargetModel, rows: list[list[int]], room: int = 100) -> TokenTree:
    drafter.start(Session(target, rows, SamplingParams(), 100))
    streams = Streams([[0]] * len(rows), SamplingParams(), target.device)
    tree = drafter.propose(DraftState(rows, kept([[0]] * len(rows)), [room] * len(rows), streams))
    tree.validate(target.vocab_size)
    return tree


def chain(tree: TokenTree, row: int = 0) -> list[int]:
    """The first path of a tree."""
    path, node = [int(tree.tokens[row, 0])], 0
    while node in (parents := tree.parents[row].tolist()):
        node = parents.index(node)
        path.append(int(tree.tokens[row, node]))
    return path


def test_a_long_match_is_drafted_far_and_a_short_one_near(tiny: TargetModel) -> None:
    text = list(range(30))
    assert chain(propose(Suffix(**OPTIONS), tiny, [[*text, 40, *text[:8]]])) == list(range(7, 24))  # 2 x 8 tokens
    assert chain(propose(Suffix(**OPTIONS), tiny, [[*text, 40, 3]])) == [3, 4, 5]
    assert chain(propose(Suffix(**OPTIONS), tiny, [[*text, 40, *text[:8]]], room=4)) == [7, 8, 9, 10]
    assert chain(propose(Suffix(**OPTIONS), tiny, [text])) == [29]


def test_the_more_frequent_continuation_comes_first_and_improbable_ones_are_left_out(tiny: TargetModel) -> None:
    text = [1, 2, 9, 1, 2, 9, 1, 3, 9, 1]
    tree = propose(Suffix(**OPTIONS), tiny, [text])
    assert tree.tokens[0, :3].tolist()[1] == 2
    assert 3 in tree.tokens[0].tolist()
    assert 3 not in propose(Suffix(**{**OPTIONS, "least": 0.4}), tiny, [text]).tokens[0].tolist()


def test_text_that_goes_in_circles_goes_on(tiny: TargetModel) -> None:
    assert chain(propose(Suffix(**OPTIONS), tiny, [[4, 5] * 6]))[:8] == [5, 4, 5, 4, 5, 4, 5, 4]


def test_texts_are_known_to_each_other_only_if_they_are_learnt(tiny: TargetModel) -> None:
    first, second = [1, 2, 3, 4, 5, 6, 7], [9, 2, 3, 4]
    for learn, known in (("off", None), ("online", 8)):
        drafter = Suffix(**OPTIONS, learn=learn)
        assert isinstance(drafter, Learner)
        assert chain(propose(drafter, tiny, [first])) == [7]
        assert chain(propose(drafter, tiny, [second])) == [4]  # the first text was measured, not learnt
        drafter.learn([first])
        expected = [4, 5, 6, 7] if learn == "online" else [4]
        assert chain(propose(drafter, tiny, [second, [8]])) == expected
        assert drafter.traits.known_tokens == known
        assert chain(propose(drafter, tiny, [[7]])) == [7]  # a text does not go on in the next


def test_memory_is_bounded_and_says_so(tiny: TargetModel, capsys: pytest.CaptureFixture) -> None:
    drafter = Suffix(**OPTIONS, learn="online", remember=6)
    drafter.learn([[1, 2, 3], [4, 5, 6, 7], [8]])
    assert drafter.traits.known_tokens == 4
    assert "drafter=suffix learns no more texts" in capsys.readouterr().err


def test_a_corpus_is_looked_up(tiny: TargetModel, tmp_path: Path) -> None:
    assert tiny.tokenizer is not None
    Corpus.of([[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 6]]).write(
        tmp_path / "c", tokenizer_hash(tiny.tokenizer), "tiny"
    )
    drafter = Suffix(**OPTIONS, own=False, corpus=str(tmp_path / "c"))
    tree = propose(drafter, tiny, [[9, 2, 3], [8]])
    assert tree.tokens[0, :4].tolist() == [3, 6, 4, 5]  # 6 twice, 4 once
    assert chain(tree, 1) == [8]
    assert drafter.traits.known_tokens == 13


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"nodes": 0}, "drafter.nodes: expected an integer >= 1, got 0"),
        ({"per_match": 0}, "drafter.per_match: expected a number > 0"),
        ({"least": 1.0}, r"drafter.least: expected a probability in \[0, 1\)"),
        ({"learn": "on"}, "drafter.learn: expected off or online, got 'on'"),
        ({"own": False}, "drafter.corpus: expected something to look up"),
        ({"remember": 0}, "drafter.remember"),
    ],
)
def test_options_out_of_range_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Suffix(**{**OPTIONS, **options})
