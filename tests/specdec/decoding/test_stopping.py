"""Texts end at EOS, stop strings and the limit, also in the middle of a block."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import StopStringCriteria

from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel


def decode(ids: list[int]) -> str:
    return "".join(chr(i) for i in ids)


@pytest.mark.parametrize(
    ("text", "block", "kept", "ended"),
    [
        ([], [1, 2, 3], [1, 2, 3], False),
        ([], [1, 99, 3], [1, 99], True),  # EOS is kept, what follows is not
        ([], [1, 98], [1, 98], True),  # any of several EOS
        ([0] * 8, [1, 2, 3], [1, 2], True),  # the limit cuts
        ([0] * 7, [1, 2, 3], [1, 2, 3], True),  # the limit is met exactly
        ([0] * 8, [99, 2], [99], True),
    ],
)
def test_blocks_are_cut_where_the_text_ends(text: list, block: list, kept: list, ended: bool) -> None:
    assert StopRule(10, frozenset({98, 99})).cut(text, block) == (kept, ended)


def test_stop_strings_end_a_text_across_blocks() -> None:
    rule = StopRule(20, stop=("END",), decode=decode)
    assert rule.cut([ord("x"), ord("E")], [ord("N"), ord("D"), ord("y")]) == ([ord("N"), ord("D")], True)
    assert rule.cut([ord("x")], [ord("E"), ord("N")]) == ([ord("E"), ord("N")], False)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"generation.max_new_tokens: expected an integer >= 1, got 0; ask for a token"
    ):
        StopRule(0)


PIECES = [
    b"a",
    b"b",
    b" ",
    b"\n",
    b"\xc3",
    b"\xa9",
    b"\xf0\x9f",
    b"\x98",
    b"\x80",
    b"",
    b"END",
    b"E",
    b"NDx",
    b"the end",
]


def of_pieces(ids: list[int]) -> str:
    return b"".join(PIECES[i] for i in ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("stop", ["\u00e9", "\U0001f600", "b a", "END", "END\nEND", "ab" * 200, "\u00e9" * 90, "x"])
def test_a_text_ends_with_the_token_that_completes_a_stop_string(stop: str) -> None:
    """However long it is, wherever it begins in a block, whatever it shares tokens and characters with: the texts end
    where the first prefix holds the string."""
    generator = random.Random(stop)
    for _ in range(60):
        text = [generator.randrange(len(PIECES)) for _ in range(generator.randrange(20))]
        if generator.random() < 0.7:  # a text that holds it, written in single bytes, with empty tokens between
            whole = stop if len(stop) < 50 else stop[: -generator.randrange(1, 3)] + stop
            for byte in whole.encode():
                text += [PIECES.index(bytes([byte]))] if bytes([byte]) in PIECES else []
                text += [9] * generator.randrange(4)
        text += [generator.randrange(len(PIECES)) for _ in range(6)]
        first = next((i + 1 for i in range(len(text)) if stop in of_pieces(text[: i + 1])), None)
        rule, made = StopRule(len(text) + 9, stop=(stop,), decode=of_pieces), list[int]()
        for begin in range(0, len(text), 3):
            block, ended = rule.cut(made, text[begin : begin + 3])
            made += block
            if ended:
                break
        assert made == text[:first]


def test_stop_strings_cut_where_those_of_transformers_do(tiny: TargetModel) -> None:
    tokenizer, stop = tiny.tokenizer, ["qu", "\u00e9\u00e9", "<|im_start|>", "z" * 70]
    assert tokenizer is not None
    theirs, rule = StopStringCriteria(tokenizer, stop), StopRule(999, stop=stop, decode=tokenizer.decode)
    texts = ["a quick one", "caf\u00e9 \u00e9\u00e9 fin", "x<|im_start|>user", "zz" + "z" * 90, "nothing"]
    for text in texts:
        ids = tokenizer.encode(text)
        ends = [i + 1 for i in range(len(ids)) if bool(theirs(torch.tensor([ids[: i + 1]]), None))]
        assert rule.cut([], ids)[0] == ids[: ends[0] if ends else None]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError) as error:
        StopRule(4, stop=["x", ""], decode=decode)
    assert str(error.value) == (
        "generation.stop: expected strings of one character or more, got an empty one, which would end every text at "
        "once; remove it"
    )
