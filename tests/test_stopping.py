"""Texts end at EOS, stop strings and the limit, also in the middle of a block."""

from __future__ import annotations

import pytest

from specdec.errors import InputError
from specdec.stopping import StopRule


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
