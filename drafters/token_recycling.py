"""Draft from what the target said before: after each token, its most likely next tokens (arXiv 2408.08696).

Every verify scores nodes that are then rejected. What the target would have said there is kept: a table maps a token to
the most likely tokens after it, as of the last time that the target read it. The most probable paths through the table
are drafted. This needs no training, no second model and no forward.

    table   the -> cat .6, dog .2        drafted   the ( cat .6 ( sat .5 ( on .2 ) ), dog .2 )
            cat -> sat .8, ran .1
            sat -> on .4
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from itertools import pairwise

from drafters.shared.best_first import Follower, best_first
from drafters.suffix.corpus import Corpus
from drafters.suffix.sources import open_corpus
from specdec.decoding.protocols import DraftState, Rows, Session, Traits, Verified
from specdec.errors import InputError
from specdec.trees.tree import TokenTree

PROMPT = 0.25  # probability, as a guess, that a token follows again as it did in the prompt

_Entry = list[tuple[int, float]]  # next tokens and their probabilities, best first
_Table = MutableMapping[int, _Entry]


class TokenRecycling:
    """Draft the most probable paths through a table of the target's own next tokens.

    The paper drafts a fixed tree of 80 nodes, by rank. Here the target's probabilities choose the nodes, so that a tree
    of any size is the best one of its size.

    Args:
        nodes: drafted nodes per row, the root not counted.
        candidates: next tokens kept per token.
        depth: largest depth of the tree.
        corpus: texts whose bigrams are used for tokens that the target has not read yet (`open_corpus`), or None.
        learn: `off` forgets the table of every text; `online` also uses the tables of the texts that `learn` was called
            with, as the paper does.

    Raises:
        InputError: a number below 1, or another `learn`.
    """

    def __init__(self, nodes: int, candidates: int, depth: int, corpus: str | None = None, learn: str = "off") -> None:
        for name, value in {"nodes": nodes, "candidates": candidates, "depth": depth}.items():
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=value, fix="raise it")
        if learn not in ("off", "online"):
            raise InputError("drafter.learn", expected="off or online", got=repr(learn), fix="choose one")
        self.nodes, self.candidates, self.depth = nodes, candidates, depth
        self._folder, self._learns = corpus, learn == "online"
        self._bigrams: _Bigrams | None = None
        self._learnt: dict[int, _Entry] = {}
        self._tables: list[ChainMap[int, _Entry]] = []

    @property
    def max_nodes(self) -> int:
        return self.nodes + 1

    @property
    def traits(self) -> Traits:
        known = len(self._learnt) + (len(self._bigrams.corpus) if self._bigrams else 0)
        warm = self._learns or self._folder is not None
        return Traits(remembers=True, top_k=self.candidates, known_tokens=known if warm else None, learns=self._learns)

    def start(self, session: Session) -> None:
        self._device = session.target.device
        if self._folder is not None and self._bigrams is None:
            self._bigrams = _Bigrams(open_corpus(self._folder, session.target), self.candidates)
        self._tables = [ChainMap({}, self._learnt) for _ in session.rows]
        for table, row in zip(self._tables, session.rows, strict=True):
            for token, follower in pairwise(row):
                table[token] = [(follower, PROMPT)]

    def learn(self, rows: Rows) -> None:
        """Use the tables of the last batch from the next one on. Does nothing unless `learn=online`."""
        if self._learns:
            for table in self._tables:
                self._learnt.update(table.maps[0])

    def propose(self, state: DraftState) -> TokenTree:
        if state.verified is not None:
            _read(self._tables, state.verified)
        trees = []
        for table, row, room in zip(self._tables, state.rows, state.room, strict=True):
            limit = min(self.depth, room - 1)

            def followers(token: int, at: int, table: _Table = table, limit: int = limit) -> list[Follower[int]]:
                return [(to, sure, to) for to, sure in self._entry(table, token)] if at < limit else []

            trees.append(best_first(row[-1], [row[-1]], followers, self.nodes))
        tokens, parents, confidence = zip(*trees, strict=True)
        return TokenTree.from_rows(tokens, parents, self._device, confidence)

    def _entry(self, table: _Table, token: int) -> _Entry:
        if token in table:
            return table[token]
        return [] if self._bigrams is None else self._bigrams.entry(token)


class _Bigrams:
    """The most frequent followers of a token in a corpus, looked up once each."""

    def __init__(self, corpus: Corpus, candidates: int) -> None:
        self.corpus, self._candidates = corpus, candidates
        self._known: dict[int, _Entry] = {}

    def entry(self, token: int) -> _Entry:
        """Return the followers of a token with their shares, most frequent first."""
        if token not in self._known:
            length, low, high = self.corpus.longest([token])
            self._known[token] = self.corpus.followers(length, low, high)[: self._candidates] if length else []
        return self._known[token]


def _read(tables: Sequence[_Table], verified: Verified) -> None:
    """Enter what the target said after every node. If a token stands at several nodes, the last counts."""
    parts = (verified.tree.tokens, verified.tokens, verified.probs)
    for table, nodes, tops, probs in zip(tables, *(part.tolist() for part in parts), strict=True):
        for token, top, sure in zip(nodes, tops, probs, strict=True):
            if token >= 0:
                table[token] = list(zip(top, sure, strict=True))
