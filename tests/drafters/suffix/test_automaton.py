"""The suffix automaton against counting by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drafters.suffix.automaton import SuffixAutomaton

TEXTS = st.lists(st.integers(0, 3), max_size=30)


def occurrences(text: list[int], part: list[int]) -> int:
    return sum(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


@given(TEXTS)
def test_repeated_suffixes_and_their_followers_are_those_counted_by_hand(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end, token in enumerate(text, 1):
        automaton.read([token])
        read = text[:end]
        found = list(automaton.suffixes())
        lengths = [length for length, _ in found]
        assert lengths == sorted(set(lengths), reverse=True)
        repeated = [length for length in range(1, end) if occurrences(read, read[-length:]) > 1]
        assert lengths[:1] == repeated[-1:]
        for length, state in found:
            suffix = read[-length:]
            counts = {follower: occurrences(read, [*suffix, follower]) for follower in range(4)}
            assert {t: n for t, n, _ in automaton.followers(state)} == {t: n for t, n in counts.items() if n}


@given(TEXTS, TEXTS)
def test_another_text_is_matched_by_its_longest_suffix(text: list[int], other: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    state = length = 0
    for end, token in enumerate(other, 1):
        state, length = automaton.step(state, length, token)
        occurring = [n for n in range(1, end + 1) if occurrences(text, other[end - n : end])]
        assert length == max(occurring, default=0)
        assert [n for n, _ in automaton.shorter(state, length)][:1] == ([length] if length else [])


def test_repetitive_text_stays_fast_and_its_long_suffixes_stay_exact() -> None:
    automaton = SuffixAutomaton([7] * 5000)
    longest, state = next(automaton.suffixes())
    assert longest == 4999
    assert automaton.followers(state) == [(7, 1, state + 1)]
    assert len(automaton) == 5000
