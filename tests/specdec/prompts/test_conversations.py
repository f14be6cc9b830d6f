"""Prompt files as they come: encodings, kinds of rows, ids; nothing is dropped without a line."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.model.load import byte_tokenizer
from specdec.prompts.conversations import Reader
from specdec.prompts.sets import Prompt, PromptEncoder, PromptSet, jsonl

ROW = {"question_id": 1, "category": "a", "turns": ["Grüße, 日本"]}
CHAT = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "Name a fish."},
    {"role": "assistant", "content": "Morue."},
    {"role": "system", "content": "Now in German."},
    {"role": "tool", "content": "{}"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Another"}, {"type": "image_url", "image_url": {}}, "please"],
    },
]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "More"}]


def written(tmp_path: Path, *rows: object, name: str = "p.jsonl") -> str:
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""), ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE), ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)  # fmt: skip
def test_files_in_any_marked_encoding_with_any_line_end(tmp_path: Path, encoding: str, mark: bytes, end: str) -> None:
    line = json.dumps(ROW, ensure_ascii=False)
    file = tmp_path / "p.jsonl"
    file.write_bytes(mark + f"{line}{end}{end}{line.replace('1', '2', 1)}{end}".encode(encoding))
    prompts = jsonl(str(file))
    assert [(prompt.id, prompt.turns) for prompt in prompts] == [("1", ("Grüße, 日本",)), ("2", ("Grüße, 日本",))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": "\xff"}', "expected text in UTF-8, got invalid start byte at byte 7; save the file as UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "got zero bytes (UTF-16 without a byte order mark?); save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "expected text in UTF-16, got truncated data at byte"),
        (b"[" * 100_000, "expected a JSON object, got malformed JSON"),
        (b'[{"turns": ["x"]}, 3]', "row 1: expected the fields question_id, category, turns"),
        (b"[]", "expected at least one prompt, got an empty file"),
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(data)
    with pytest.raises(InputError) as error:
        jsonl(str(file))
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"prompts.path: expected a readable JSONL file, got .*no regular file"):
        jsonl(str(path))


def test_halves_of_characters_are_joined_or_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"question_id": "\\ud83d", "category": "c", "turns": ["cut \\ud83d here", "whole \\ud83d\\ude00"]}'
    )
    prompt = jsonl(str(file))[0]
    assert (prompt.id, prompt.turns) == ("\ufffd", ("cut \ufffd here", "whole 😀"))
    assert "left out 2 halves of a character (now U+FFFD)" in capsys.readouterr().err
    assert PromptEncoder(byte_tokenizer()).encode(prompt.turns[:1], [])


def test_chats_keep_the_users_words_and_the_system_message_and_count_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    empty = [{"messages": [{"role": "user", "content": None}]}, {"messages": []}]
    file = written(tmp_path, {"messages": CHAT}, *empty, {"id": "x1", "conversations": SHAREGPT}, name="chats.jsonl")
    assert jsonl(file) == [
        Prompt("1", "chats", ("Name a fish.", "Another\nplease"), "Answer in French."),
        Prompt("x1", "chats", ("Hi", "More")),
    ]
    assert capsys.readouterr().err == (
        f"{file}: left out 2 answers (the target writes its own), 1 empty messages, 1 messages of tool, "
        "1 parts that are not text, 2 rows in which the user says nothing, 1 system messages behind a turn\n"
    )


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    file = tmp_path / "share.json"
    file.write_text(json.dumps([{"id": "x1", "conversations": SHAREGPT}], indent=1), "utf-8")
    assert jsonl(str(file)) == [Prompt("x1", "share", ("Hi", "More"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "line 1, messages: expected a list of messages, got 'hi'; mend the row"),
        ({"conversations": [{"value": "x"}]}, "expected messages with role and content, or from and value, got {"),
        ({**ROW, "question_id": None}, "line 1: expected id: text or a number, got None; mend the line"),
        ({**ROW, "question_id": [1]}, "line 1: expected id: text or a number, got [1]"),
        ({**ROW, "question_id": True}, "line 1: expected id: text or a number, got True"),
        ({**ROW, "category": {}}, "line 1: expected category: text or a number, got {}"),
        ({**ROW, "system": 3}, "line 1: expected system: text, got 3"),
        ({"messages": []}, "expected at least one prompt, got no row in which the user says something"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        jsonl(written(tmp_path, row))
    assert message in str(error.value)


def test_ids_that_stand_twice_get_a_number_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{**ROW, "question_id": name} for name in (7, "7", 8, 7, "7#2")]
    file = written(tmp_path, *rows)
    assert [prompt.id for prompt in jsonl(file)] == ["7", "7#3", "8", "7#4", "7#2"]
    assert f"{file}: 1 ids stand on several rows (7); the later ones are called 7#3" in capsys.readouterr().err


def test_a_system_message_stands_before_the_first_turn() -> None:
    tokenizer = byte_tokenizer()
    ids = PromptEncoder(tokenizer).encode(["hi"], [], system="Be brief.")
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")
    tokenizer.chat_template = None
    assert tokenizer.decode(PromptEncoder(tokenizer).encode(["hi"], [], system="Be brief.")) == "Be brief.\n\nhi"


def test_a_line_of_a_prompt_is_read_as_that_prompt(tmp_path: Path) -> None:
    prompts = [Prompt("1", "c", ("a", "b"), "s"), Prompt("2", "c", ("a",))]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(prompt.line() for prompt in prompts), "utf-8")
    assert jsonl(str(file)) == prompts


def test_cells_of_data_sets() -> None:
    reader = Reader("column")
    cells = [reader.cell(cell, "row 0") for cell in ("one", ["one", "", "two"], CHAT[:2], SHAREGPT, None, [], 3)]
    assert [cell and (cell.turns, cell.system) for cell in cells] == [
        (("one",), None), (("one", "two"), None), (("Name a fish.",), "Answer in French."), (("Hi", "More"), None),
        None, None, None,
    ]  # fmt: skip
    assert reader.summary() == (
        "column: left out 1 answers (the target writes its own), 1 empty messages, "
        "3 rows in which the user says nothing"
    )


def test_prompts_that_are_too_long_are_skipped_if_that_is_asked_for() -> None:
    prompts = [Prompt(str(n), "c", ("x" * n,)) for n in (3, 9, 5)]

    def tokens(prompt: Prompt) -> int:
        return len(prompt.turns[0])

    assert PromptSet(prompts).fitting(tokens, 5) == (prompts, [])
    kept, skipped = PromptSet(prompts, "skip").fitting(tokens, 5)
    assert [prompt.id for prompt in kept] == ["3", "5"]
    assert [vars(one) for one in skipped] == [{"prompt": "9", "turn": 0, "tokens": 9, "room": 5}]
    assert PromptSet(prompts, "skip").fitting(tokens, None) == (prompts, [])
    with pytest.raises(InputError, match=r"expected one of at most 2 tokens: .* got 3 tokens in the shortest"):
        PromptSet(prompts, "skip").fitting(tokens, 2)
    with pytest.raises(InputError, match=r"prompts.too_long: expected refuse or skip, got 'drop'; choose one"):
        PromptSet(prompts, "drop")
