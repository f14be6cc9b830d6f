"""Draft what followed earlier occurrences of the text's end (SuffixDecoding, arXiv 2411.04975; SAM, 2411.10666).

Three sources are looked up at every step: the text itself, texts that were generated before (if it may learn from
them), and a corpus on disk. Each gives the longest suffix of the text that occurs there, and how often it went on how.
The tree of the most probable continuations of all sources is drafted. Text that is copied, as in editing or by agents,
matches at length, and is drafted far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from drafters.shared.best_first import Follower, best_first
from drafters.suffix.automaton import SuffixAutomaton
from drafters.suffix.corpus import CONTEXT, Corpus
from drafters.suffix.sources import open_corpus
from specdec.decoding.protocols import DraftState, Rows, Session, Traits
from specdec.errors import InputError
from specdec.notes import note
from specdec.trees.tree import TokenTree

BACK_OFF = 4  # suffixes of the text that guess together: the longest that occurred, and shorter ones
SEPARATOR = -1  # stands between the texts that were learnt


@runtime_checkable
class _Match(Protocol):
    """A context in a source: the text's end and what was drafted after it."""

    @property
    def most(self) -> int:
        """Depth that its guesses may reach."""
        ...

    def followers(self) -> Iterator[Follower[_Match]]:
        """Yield what may follow. Its probability is its share of the occurrences, times the trust in a context of this
        length (`_trust`)."""
        ...


@dataclass(frozen=True)
class _InText:
    """A context of `length` tokens at a state of an automaton."""

    source: SuffixAutomaton
    length: int
    state: int
    most: int

    def followers(self) -> Iterator[Follower[_Match]]:
        found = [follower for follower in self.source.followers(self.state) if follower[0] != SEPARATOR]
        total, trust = sum(count for _, count, _ in found), _trust(self.length)
        for token, count, state in found:
            yield token, trust * count / total, _InText(self.source, self.length + 1, state, self.most)


@dataclass(frozen=True)
class _InCorpus:
    """A context of `length` tokens in a corpus: a range of it that agrees in all but the last, and the last token."""

    source: Corpus
    length: int
    low: int
    high: int
    last: int
    most: int

    def followers(self) -> Iterator[Follower[_Match]]:
        low, high = self.source.narrow(self.last, self.length - 1, self.low, self.high)
        trust = _trust(self.length)
        for token, share in self.source.followers(self.length, low, high):
            yield token, trust * share, _InCorpus(self.source, self.length + 1, low, high, token, self.most)


def _trust(length: int) -> float:
    """Return how often a continuation of a match of so many tokens is right, as a guess: 1/2, 3/4, 7/8, ..."""
    return 1 - 0.5 ** min(length, 20)


class Suffix:
    """Draft from the longest matches of the text's end.

    Args:
        nodes: largest number of drafted nodes per row, the root not counted. Fewer are drafted if they are improbable.
        per_match: tokens drafted per token of a match.
        depth: largest depth of a tree.
        least: leave out nodes whose probability of being accepted is smaller, by the drafter's own estimate.
        own: look up the text itself.
        corpus: texts to look up (`open_corpus`), or None.
        learn: `off` forgets every text; `online` also looks up the texts that `learn` was called with.
        remember: largest number of learnt tokens; later texts are not learnt, and a line is printed.

    Raises:
        InputError: a number out of range, another `learn`, or nothing to look up.
    """

    def __init__(
        self,
        nodes: int,
        per_match: float,
        depth: int,
        least: float,
        own: bool = True,
        corpus: str | None = None,
        learn: str = "off",
        remember: int = 2_000_000,
    ) -> None:
        for name, value in {"nodes": nodes, "depth": depth, "remember": remember}.items():
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=value, fix="raise it")
        if not per_match > 0:
            raise InputError("drafter.per_match", expected="a number > 0", got=per_match, fix="raise it")
        if not 0 <= least < 1:
            raise InputError("drafter.least", expected="a probability in [0, 1)", got=least, fix="try 0.1")
        if learn not in ("off", "online"):
            raise InputError("drafter.learn", expected="off or online", got=repr(learn), fix="choose one")
        if not own and corpus is None and learn == "off":
            fix = "give drafter.corpus=FOLDER (python -m experiments.build_corpus), or drafter.own=true"
            raise InputError("drafter.corpus", expected="something to look up", got="nothing", fix=fix)
        self.nodes, self.per_match, self.depth, self.least = nodes, per_match, depth, least
        self._own, self._folder, self._learns, self._remember = own, corpus, learn == "online", remember
        self._corpus: Corpus | None = None
        self._learnt = SuffixAutomaton()

    @property
    def max_nodes(self) -> int:
        return self.nodes + 1

    @property
    def traits(self) -> Traits:
        known = (len(self._corpus) if self._corpus else 0) + len(self._learnt)
        warm = self._learns or self._folder is not None
        return Traits(remembers=self._learns, known_tokens=known if warm else None, learns=self._learns)

    def start(self, session: Session) -> None:
        self._device = session.target.device
        if self._folder is not None and self._corpus is None:
            self._corpus = open_corpus(self._folder, session.target)
        self._texts = [_Text(self._learnt) for _ in session.rows]

    def learn(self, rows: Rows) -> None:
        """Look up these texts, too, from the next batch on. Does nothing unless `learn=online`."""
        if not self._learns:
            return
        for row in rows:
            if len(self._learnt) + len(row) >= self._remember:
                note(f"drafter=suffix learns no more texts: {len(self._learnt):,} tokens (raise drafter.remember)")
                return
            self._learnt.read([*row, SEPARATOR])

    def propose(self, state: DraftState) -> TokenTree:
        trees = []
        for text, row, room in zip(self._texts, state.rows, state.room, strict=True):
            text.read(row)
            matches = list(self._matches(text, row)) if room > 1 else []
            limit = min(self.depth, room - 1)

            def followers(match: _Match, depth: int, limit: int = limit) -> Iterator[Follower[_Match]]:
                return match.followers() if depth < min(match.most, limit) else iter(())

            trees.append(best_first(row[-1], matches, followers, self.nodes, self.least))
        tokens, parents, confidence = zip(*trees, strict=True)
        return TokenTree.from_rows(tokens, parents, self._device, confidence)

    def _matches(self, text: _Text, row: Sequence[int]) -> Iterator[_Match]:
        """Yield the contexts to draft from: the longest suffixes of the text that occur in each source."""
        if self._own:
            yield from self._of(text.automaton, text.automaton.suffixes())
        if self._learns:
            yield from self._of(self._learnt, self._learnt.shorter(text.state, text.length))
        if self._corpus is not None:
            length, low, high = self._corpus.longest(row[-CONTEXT:])
            if length:
                yield _InCorpus(self._corpus, length, low, high, row[-1], self._most(length))

    def _of(self, source: SuffixAutomaton, suffixes: Iterator[tuple[int, int]]) -> Iterator[_Match]:
        for length, state in islice(suffixes, BACK_OFF):
            yield _InText(source, length, state, self._most(length))

    def _most(self, length: int) -> int:
        return max(1, round(self.per_match * length))


class _Text:
    """One row: its own automaton, and where its end stands in the automaton of learnt texts."""

    def __init__(self, learnt: SuffixAutomaton) -> None:
        self.automaton, self._learnt = SuffixAutomaton(), learnt
        self.state = self.length = 0

    def read(self, row: Sequence[int]) -> None:
        """Read the tokens written since the last call."""
        new = row[len(self.automaton) :]
        self.automaton.read(new)
        for token in new:
            self.state, self.length = self._learnt.step(self.state, self.length, token)
