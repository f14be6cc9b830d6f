"""Draft n-grams that the target itself guesses ahead, by parallel Jacobi iteration (Lookahead, arXiv 2402.02057).

Beside the drafts, every verify reads a window of guesses: a chain of tokens after the root, and under each of them what
earlier steps guessed behind it. The target's word after the last of each column is the next guess. A column and that
word are an n-gram; n-grams that begin with the root's token are drafted. Window and drafts are paths of one tree.

    window 3, ngram 3     root - a1 - a2 - a3         a: guesses of the step before
                                 |    |    |
                                 b1   b2   b3         b: the newest guesses; c = the target's word after each b
                          n-grams of this step: a1 b1 c1, a2 b2 c2, a3 b3 c3; then a = b, b = c
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from specdec.decoding.protocols import DraftState, Session, Traits
from specdec.errors import InputError
from specdec.trees.tree import PAD, TokenTree


class Lookahead:
    """Guess n-grams in a window behind the text, and draft those that fit its end.

    Args:
        window: columns of the window, W of the paper.
        ngram: tokens of an n-gram, N of the paper.
        guesses: n-grams drafted per step, G of the paper.
        prompt: whether the n-grams of the prompt are drafted, too.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, window: int, ngram: int, guesses: int, prompt: bool = True) -> None:
        for name, value, least in (("window", window, 1), ("ngram", ngram, 2), ("guesses", guesses, 1)):
            if value < least:
                raise InputError(f"drafter.{name}", expected=f"an integer >= {least}", got=value, fix="raise it")
        self.window, self.ngram, self.guesses, self.prompt = window, ngram, guesses, prompt
        self.traits = Traits(remembers=True, top_k=1)

    @property
    def max_nodes(self) -> int:
        return 1 + (self.window + self.guesses) * (self.ngram - 1)

    def start(self, session: Session) -> None:
        self._device = session.target.device
        self._texts = [_Text(self, row) for row in session.rows]

    def propose(self, state: DraftState) -> TokenTree:
        if state.verified is not None:
            tree = state.verified.tree
            parts = (tree.tokens.tolist(), tree.parents.tolist(), state.verified.tokens[..., 0].tolist())
            for text, tokens, parents, words in zip(self._texts, *parts, strict=True):
                text.read(tokens, parents, words)
        trees = [text.tree(row) for text, row in zip(self._texts, state.rows, strict=True)]
        tokens, parents = zip(*trees, strict=True)
        return TokenTree.from_rows(tokens, parents, self._device)


class _Text:
    """The window and the n-grams of one row.

    Attributes:
        levels: guesses at each distance, [ngram - 1][window]; level l of column j is l + j + 1 tokens after the root.
        pool: first token -> the rest of its n-grams, the latest last.
    """

    def __init__(self, of: Lookahead, row: Sequence[int]) -> None:
        self._of = of
        rng = random.Random(len(row))  # anything will do; the row alone decides
        self.levels = [[rng.choice(row) for _ in range(of.window)] for _ in range(of.ngram - 1)]
        self.pool: dict[int, dict[tuple[int, ...], None]] = {}
        if of.prompt:
            for begin in range(len(row) - of.ngram + 1):
                self._add(tuple(row[begin : begin + of.ngram]))

    def read(self, tokens: Sequence[int], parents: Sequence[int], words: Sequence[int]) -> None:
        """Take the target's words after the window's last guesses, and move the window on by a token.

        Args:
            tokens: of the tree that was verified.
            parents: of its nodes.
            words: the target's most likely token after each node.
        """
        child = {key: node for node, key in enumerate(zip(parents, tokens, strict=True)) if key[1] != PAD}
        newest = []
        for column in range(self._of.window):
            node: int | None = 0
            for token in self._path(column):
                node = None if node is None else child.get((node, token))
            word = self.levels[-1][column] if node is None else words[node]  # a node may have been left out
            if node is not None:
                self._add((*self._column(column), word))
            newest.append(word)
        self.levels = [*self.levels[1:], newest]

    def tree(self, row: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return tokens and parents of the window and the fitting n-grams, merged on shared prefixes."""
        known = list(self.pool.get(row[-1], ()))[-self._of.guesses :]
        tokens, parents, child = [row[-1]], [PAD], {}
        for path in [*reversed(known), *map(self._path, range(self._of.window))]:
            node = 0
            for token in path:
                if (node, token) not in child:
                    child[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child[node, token]
        return tokens, parents

    def _path(self, column: int) -> list[int]:
        """Return the tokens from the root to the last guess of a column."""
        return self.levels[0][:column] + self._column(column)

    def _column(self, column: int) -> list[int]:
        return [level[column] for level in self.levels]

    def _add(self, ngram: tuple[int, ...]) -> None:
        first = self.pool.setdefault(ngram[0], {})
        first.pop(ngram[1:], None)
        first[ngram[1:]] = None
        if len(first) > self._of.guesses:
            del first[next(iter(first))]
