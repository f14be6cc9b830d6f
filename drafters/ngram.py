"""Prompt lookup: propose what followed when the text last ended with the same tokens (Saxena 2023; arXiv 2304.04487).

It needs no model: a table holds every n-gram of the prompt and of the text generated so far.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle, islice

from specdec.decoding.protocols import DraftState, Session
from specdec.errors import InputError
from specdec.trees.tree import TokenTree


class Ngram:
    """Merge the continuations of the longest suffix seen before, most recent first, into one tree.

    Nothing is drafted without a match.

    Args:
        max_ngram: longest suffix to look for, in tokens.
        min_ngram: shortest suffix to look for, in tokens.
        depth: largest number of tokens per continuation.
        branches: largest number of continuations in a tree.
        nodes: largest number of drafted nodes, the root not counted.
        per_match: tokens drafted per token of the matched suffix, because longer matches are right more often; None
            always drafts `depth` tokens.

    Raises:
        InputError: a number < 1, or `max_ngram` < `min_ngram`.
    """

    def __init__(
        self, max_ngram: int, min_ngram: int, depth: int, branches: int, nodes: int, per_match: int | None = None
    ) -> None:
        per_match = depth if per_match is None else per_match
        least = {"min_ngram": min_ngram, "depth": depth, "branches": branches, "nodes": nodes, "per_match": per_match}
        for name, value in least.items():
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=repr(value), fix="raise it")
        if max_ngram < min_ngram:
            fix = "raise drafter.max_ngram"
            raise InputError("drafter.max_ngram", expected=f"at least min_ngram ({min_ngram})", got=max_ngram, fix=fix)
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.depth, self.per_match, self.branches, self.nodes = depth, per_match, branches, nodes

    @property
    def max_nodes(self) -> int:
        return self.nodes + 1

    def start(self, session: Session) -> None:
        self._device = session.target.device
        self._tables = [_Table(self.sizes) for _ in session.rows]

    def propose(self, state: DraftState) -> TokenTree:
        trees = []
        for row, table, room in zip(state.rows, self._tables, state.room, strict=True):
            table.read(row)
            depth = max(min(self.depth, room - 1), 0)
            continuations = table.continuations(row, depth, self.per_match, self.branches)
            trees.append(_trie(row[-1], continuations, self.max_nodes))
        tokens, parents, confidence = zip(*trees, strict=True)
        return TokenTree.from_rows(tokens, parents, self._device, confidence)


RECENT = 32  # occurrences of an n-gram to look at, so that very repetitive text stays fast


class _Table:
    """The end positions (exclusive) of every n-gram of a growing text, in order of appearance."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._read = 0

    def read(self, row: Sequence[int]) -> None:
        """Add the n-grams that end in the tokens written since the last call."""
        for end in range(self._read + 1, len(row) + 1):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(row[end - size : end])].append(end)
        self._read = len(row)

    def continuations(
        self, row: Sequence[int], most: int, per_match: int, branches: int
    ) -> list[tuple[tuple[int, ...], float]]:
        """Return different continuations, longer matches first, then more recent ones.

        Each comes with a confidence that holds for all its tokens: 1/2, 3/4, 7/8, ... for a suffix of 1, 2, 3, ...
        tokens (a guess). A continuation that reaches the end of the text repeats itself, as periodic text would.

        Args:
            row: committed tokens, already read.
            most: largest number of tokens per continuation.
            per_match: tokens per token of the matched suffix.
            branches: largest number of continuations.
        """
        found: dict[tuple[int, ...], float] = {}
        for size in self._sizes:
            ends = self._ends.get(tuple(row[-size:]), [])[:-1]  # the last is the suffix itself
            depth = min(per_match * size, most)
            for end in reversed(ends[-RECENT:]):
                found.setdefault(tuple(islice(cycle(row[end : end + depth]), depth)), 1 - 0.5**size)
                if len(found) == branches:
                    return list(found.items())
        return list(found.items())


def _trie(
    root: int, continuations: Sequence[tuple[Sequence[int], float]], limit: int
) -> tuple[list[int], list[int], list[float]]:
    """Return tokens, parents and confidences of the tree of all continuations, merged on shared prefixes."""
    tokens, parents, confidence = [root], [-1], [1.0]
    child: dict[tuple[int, int], int] = {}
    for continuation, sure in continuations:
        node = 0
        for token in continuation:
            if (node, token) not in child:
                if len(tokens) == limit:
                    break
                child[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                confidence.append(sure)
            node = child[node, token]
    return tokens, parents, confidence
