"""A suffix automaton of a growing text (Blumer et al. 1985), with the number of occurrences of every substring.

A state stands for the substrings that end at the same positions. It holds the longest of them; its `link` leads to the
longest suffix that occurs at more positions. Reading a token takes amortised constant time, apart from the counts.

    abcab    the last state is "abcab"; its link is "ab", the longest suffix that occurred before
             followers of "ab": c, once
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

COUNTED = 64  # suffixes of the text whose count grows with a token; only text that repeats itself has more of them


class SuffixAutomaton:
    """Read a text token by token; find its suffixes that occurred before, and what followed them.

    Counts are exact while at most `COUNTED` states are suffixes of the text. Beyond that the counts of the shortest
    suffixes fall behind, which keeps very repetitive text fast.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._count = [-1], [0], [0]
        self._last = 0
        self.read(tokens)

    def __len__(self) -> int:
        """Return the number of tokens read."""
        return self._length[self._last]

    def read(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._append(token)

    def suffixes(self) -> Iterator[tuple[int, int]]:
        """Yield (length, state) of the text's suffixes that occurred before, one per state, longest first."""
        state = self._link[self._last]
        while state > 0:
            yield self._length[state], state
            state = self._link[state]

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Follow another text: return the state and the length of its longest suffix that occurs in this one.

        Args:
            state: where the text stood; 0 at its beginning.
            length: length of its matched suffix there.
            token: its next token.
        """
        while state > 0 and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        return (self._next[state][token], length + 1) if token in self._next[state] else (0, 0)

    def shorter(self, state: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (length, state) of a matched suffix and of its own suffixes, longest first."""
        while state > 0:
            yield length, state
            state = self._link[state]
            length = self._length[state]

    def followers(self, state: int) -> list[tuple[int, int, int]]:
        """Return (token, number of occurrences, state behind it) for every token that followed.

        The end of the text is followed as its longest suffix that occurred before: text that goes in circles goes on.
        """
        while not self._next[state] and state > 0:
            state = self._link[state]
        return [(token, self._count[to], to) for token, to in self._next[state].items()]

    def _append(self, token: int) -> None:
        state = self._new({}, self._length[self._last] + 1, -1, 0)
        before, self._last = self._last, state
        while before >= 0 and token not in self._next[before]:
            self._next[before][token] = state
            before = self._link[before]
        self._link[state] = 0 if before < 0 else self._behind(before, token)
        for _ in range(COUNTED):
            if state <= 0:
                break
            self._count[state] += 1
            state = self._link[state]

    def _behind(self, state: int, token: int) -> int:
        """Return the state of (longest substring of `state`) + token, splitting it off longer ones if need be."""
        to = self._next[state][token]
        if self._length[to] == self._length[state] + 1:
            return to
        clone = self._new(dict(self._next[to]), self._length[state] + 1, self._link[to], self._count[to])
        self._link[to] = clone
        while state >= 0 and self._next[state].get(token) == to:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _new(self, following: dict[int, int], length: int, link: int, count: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(link)
        self._count.append(count)
        return len(self._next) - 1
