"""The suffix array against counting by hand, and folders that are not its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drafters.suffix import corpus as corpora
from drafters.suffix.corpus import CONTEXT, SORTED, Corpus
from drafters.suffix.sources import open_corpus, texts_of
from specdec.errors import InputError
from specdec.model.target import TargetModel

TOKENS = st.integers(0, 3)
TEXTS = st.lists(st.lists(TOKENS, min_size=1, max_size=40), min_size=1, max_size=4)


def occurrences(texts: list[list[int]], part: list[int]) -> int:
    return sum(text[i : i + len(part)] == part for text in texts for i in range(len(text) - len(part) + 1))


@given(TEXTS, st.lists(TOKENS, max_size=20))
def test_contexts_and_followers_are_those_counted_by_hand(texts: list[list[int]], context: list[int]) -> None:
    corpus = Corpus.of(texts)
    assert len(corpus) == sum(map(len, texts))
    length, low, high = corpus.longest(context)
    occurring = [n for n in range(1, min(CONTEXT, len(context)) + 1) if occurrences(texts, context[-n:])]
    assert length == max(occurring, default=0)
    if not length:
        return
    known = context[-length:]
    assert high - low == occurrences(texts, known)
    counts = {token: occurrences(texts, [*known, token]) for token in range(4)}
    found = dict(corpus.followers(length, low, high))
    assert found == pytest.approx({t: n / sum(counts.values()) for t, n in counts.items() if n})
    for token in found:
        begin, end = corpus.narrow(token, length, low, high)
        assert end - begin == counts[token]


def test_no_continuation_leads_from_one_text_into_the_next_or_beyond_what_is_sorted() -> None:
    corpus = Corpus.of([[1, 2], [3, 4]])
    assert corpus.followers(*corpus.longest([2])) == []
    long = Corpus.of([list(range(2 * SORTED))])
    assert long.followers(SORTED, *long.longest([0])[1:]) == []


def test_a_folder_gives_back_the_same_corpus_and_is_replaced_whole(tmp_path: Path) -> None:
    for texts in ([[1, 2, 3]], [[4, 5], [6]]):
        Corpus.of(texts).write(tmp_path / "corpus", "a", "tiny")
        opened = Corpus.open(tmp_path / "corpus", "a")
        assert np.array_equal(opened.order, Corpus.of(texts).order)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_another_tokenizer_a_cut_file_and_a_missing_folder_are_one_line(tmp_path: Path) -> None:
    Corpus.of([[1, 2, 3]]).write(tmp_path / "corpus", "a", "tiny")
    with pytest.raises(
        InputError, match=r"drafter.corpus: expected a corpus of the target's own tokenizer, .* tiny; build"
    ):
        Corpus.open(tmp_path / "corpus", "b")
    (tmp_path / "corpus" / "order.npy").write_bytes(b"cut")
    with pytest.raises(InputError, match="got one with files that are cut short or changed"):
        Corpus.open(tmp_path / "corpus", "a")
    with pytest.raises(InputError, match="got no such folder"):
        Corpus.open(tmp_path / "none", "a")


def test_plain_text_is_encoded_and_what_is_none_is_one_line(tiny: TargetModel, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("hello")
    assert tiny.tokenizer is not None
    assert list(texts_of(file, tiny)) == [tiny.tokenizer.encode("hello")]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"data: expected a folder of .*, or text in UTF-8, got .*text.txt"):
        list(texts_of(file, tiny))
    with pytest.raises(InputError, match="No such file"):
        list(texts_of(tmp_path / "none.txt", tiny))
    with pytest.raises(InputError, match="expected at least one text, got none"):
        Corpus.of([])


def test_without_shipped_text_auto_says_how_to_build_a_corpus(tiny: TargetModel) -> None:
    with pytest.raises(InputError, match=r"drafter.corpus=auto: expected a target with shipped text \(smollm2_135m\)"):
        open_corpus("auto", tiny)


def test_a_frequent_context_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "SAMPLE", 4)
    corpus = Corpus.of([[1, 2] * 50 + [1, 3]])
    found = dict(corpus.followers(*corpus.longest([1])))
    assert found[2] > 0.7
    low, high = corpus.narrow(2, *corpus.longest([1]))
    assert high - low == 50
