"""Prompt sets and what is wrong with them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.models import byte_tokenizer
from specdec.prompts import Prompt, PromptEncoder, builtin, dataset, even_share, jsonl


@pytest.mark.parametrize("text", ["plain words,  two spaces\n", "héllo 日本語 👩‍👩‍👧", ""])
def test_pieces_join_to_the_text_and_characters_stay_whole(text: str) -> None:
    encoder, ids = PromptEncoder(byte_tokenizer()), byte_tokenizer().encode(text)
    pieces = encoder.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == encoder.decode(ids)
    assert [piece for piece in pieces if piece] == list(text)
    cut = ids[:-1]  # in the middle of a character, perhaps
    assert "".join(encoder.pieces(cut)) == encoder.decode(cut)


def test_builtin_prompts_cover_six_categories() -> None:
    prompts = builtin()
    assert len(prompts) >= 48
    assert len({p.id for p in prompts}) == len(prompts)
    counts = Counter(p.category for p in prompts)
    assert len(counts) == 6
    assert min(counts.values()) >= 8
    assert any(len(p.turns) > 1 for p in prompts)


def test_a_limit_takes_an_even_share_of_each_category() -> None:
    prompts = [Prompt(str(i), c, ("x",)) for i, c in enumerate("aaaabbbcd")]
    assert [p.category for p in even_share(prompts, 6)] == list("aabbcd")
    assert [p.id for p in even_share(prompts, 4)] == ["0", "4", "7", "8"]
    assert even_share(prompts, None) == prompts
    assert even_share(prompts, 99) == prompts


GOOD = {"question_id": 1, "category": "a", "turns": ["hi"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one prompt, got an empty file; write lines with question_id, category, turns"),
        (json.dumps(GOOD) + "\n{oops", "line 2: expected a JSON object, got malformed JSON"),
        ("[1]", "line 1: expected a JSON object, got list; write question_id, category, turns"),
        ('{"question_id": 1, "turns": ["x"]}', "line 1: expected the fields question_id, category, turns, got no cat"),
        (json.dumps({**GOOD, "turns": []}), "line 1: expected turns: a list of non-empty strings, got []; mend"),
        (json.dumps({**GOOD, "turns": ["a", " "]}), "line 1: expected turns: a list of non-empty strings"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content, "utf-8")
    with pytest.raises(InputError) as error:
        jsonl(str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({**GOOD, "turns": ["one\u2028two\x85three"]}, ensure_ascii=False) + "\n\n", "utf-8")
    assert jsonl(str(file))[0].turns == ("one\u2028two\x85three",)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"prompts.path: expected a readable JSONL file in UTF-8, got 'nowhere.jsonl'"):
        jsonl("nowhere.jsonl")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"prompts.limit: expected an integer >= 1, or null for all, got 0"):
        builtin(0)


def test_turns_and_answers_go_through_the_chat_template() -> None:
    tokenizer = byte_tokenizer()
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode(["hi", "more"], ["hello"])
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoder.decode(tokenizer.encode("ok<|im_end|>")) == "ok"


def test_without_a_template_messages_are_joined() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(PromptEncoder(tokenizer).encode(["hi", "more"], ["hello"])) == "hi\n\nhello\n\nmore"


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, str]:
    """A data set of the kinds of column there are, as the library reads it from a file."""
    pytest.importorskip("datasets", reason="the optional library `datasets` is not installed")
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    rows = [
        {"text": "first", "turns": ["one", "two"], "messages": [*messages, {"role": "user", "content": "c"}], "n": 1},
        {"text": " ", "turns": [], "messages": [], "n": 2},
        {"text": "third", "turns": ["three"], "messages": messages, "n": 3},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"name": "json", "data_files": str(file), "cache_dir": str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("column", "turns"),
    [("text", [("first",), ("third",)]), ("turns", [("one", "two"), ("three",)]), ("messages", [("a", "c"), ("a",)])],
)
def test_data_sets_of_texts_turns_and_messages(
    saved: dict[str, str], column: str, turns: list[tuple[str, ...]]
) -> None:
    prompts = dataset(column=column, **saved)
    assert [prompt.turns for prompt in prompts] == turns
    assert [prompt.id for prompt in prompts] == ["json-0", "json-2"]
    assert dataset(column=column, limit=1, **saved) == prompts[:1]


def test_data_sets_that_cannot_be_read(saved: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"prompts.column: expected one of text, turns, messages, n, got 'prompt'"):
        dataset(**saved)
    with pytest.raises(
        InputError, match=r"prompts.column: expected texts, or lists of texts or messages, got none in 'n'"
    ):
        dataset(column="n", **saved)
    with pytest.raises(InputError, match=r"prompts.name: expected a data set that can be loaded, got 'json'"):
        dataset(**{**saved, "data_files": "nowhere.jsonl"})


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match="expected the library `datasets`, got no such installation; pip install datasets"
    ):
        dataset("anything")
