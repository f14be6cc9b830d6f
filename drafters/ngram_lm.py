"""Draft with an n-gram language model of the text so far: prompt lookup that samples, with its own q.

`ngram` proposes what followed the last match. This drafter samples from the distribution of all tokens that followed,
and longer contexts weigh more. It has no weights and needs no forward. It is the cheapest drafter with random children,
so acceptance rules can be compared on it without a second model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.decoding.grow_fixed import TreeShape, level_q
from specdec.decoding.protocols import DraftState, Session
from specdec.errors import InputError
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree, histories


class NgramLM:
    """Interpolate q over the suffixes of the context (Jelinek & Mercer 1980).

    The longest suffix seen before has the share `weight`, the next shorter one the share `weight` of the rest, and so
    on. The frequencies of single tokens take what is left.

    Args:
        max_ngram: longest suffix, in tokens.
        weight: share of a suffix in what longer ones left, in (0, 1).
        widths, children: as in `TreeShape`; at temperature 0 the children are always the top-k.

    Raises:
        InputError: a number out of range.
    """

    def __init__(
        self, max_ngram: int, weight: float, widths: Sequence[int], children: str = "with_replacement"
    ) -> None:
        if max_ngram < 1:
            raise InputError("drafter.max_ngram", expected="an integer >= 1", got=repr(max_ngram), fix="raise it")
        if not 0 < weight < 1:
            raise InputError("drafter.weight", expected="a number in (0, 1)", got=repr(weight), fix="try 0.8")
        self.max_ngram, self.weight, self.shape = max_ngram, weight, TreeShape(widths, children)

    @property
    def max_nodes(self) -> int:
        return self.shape.nodes

    def start(self, session: Session) -> None:
        self._sampling, self._target = session.sampling, session.target
        self._counts = [_Counts(self.max_ngram) for _ in session.rows]

    def propose(self, state: DraftState) -> TokenTree:
        for counts, row in zip(self._counts, state.rows, strict=True):
            counts.read(row)

        def next_q(known: TokenTree, level: int) -> Tensor:
            before = histories(known, state.rows)
            places = range(known.nodes - level, known.nodes)
            last = [before[r * known.nodes + place] for r in range(known.batch) for place in places]
            logits = torch.stack([self._logits(history, i // level) for i, history in enumerate(last)])
            logits = logits.to(self._target.device).view(known.batch, level, -1)
            return level_q(logits, known, state.rows, self._sampling)

        how = "top_k" if self._sampling.greedy else self.shape.children
        depth = max(0, min(self.shape.depth, max(state.room) - 1))
        root = on_device([row[-1] for row in state.rows], self._target.device)
        return self.shape.grow(root, next_q, state.draws(self.max_nodes), depth, how)

    def _logits(self, history: Sequence[int], row: int) -> Tensor:
        """Return log q before temperature and penalties, -inf for tokens that the text does not contain."""
        q = torch.zeros(self._target.vocab_size, dtype=torch.promote_types(self._target.dtype, torch.float32))
        left = 1.0
        for followers in self._counts[row].of_suffixes(history):
            share = left * (self.weight if len(followers.context) else 1.0)
            tokens = torch.tensor(list(followers.counts))
            q[tokens] += share * torch.tensor(list(followers.counts.values()), dtype=q.dtype) / followers.total
            left -= share
        return q.log()


class _Followers:
    """The tokens that followed one context, with their counts."""

    def __init__(self, context: tuple[int, ...]) -> None:
        self.context, self.counts, self.total = context, Counter[int](), 0


class _Counts:
    """The followers of every context of up to `longest` tokens in a growing text."""

    def __init__(self, longest: int) -> None:
        self._longest, self._read = longest, 0
        self._followers: dict[tuple[int, ...], _Followers] = {}

    def read(self, row: Sequence[int]) -> None:
        """Count the tokens added since the last call."""
        for end in range(self._read, len(row)):
            for size in range(min(self._longest, end) + 1):
                context = tuple(row[end - size : end])
                followers = self._followers.setdefault(context, _Followers(context))
                followers.counts[row[end]] += 1
                followers.total += 1
        self._read = len(row)

    def of_suffixes(self, history: Sequence[int]) -> list[_Followers]:
        """Return the followers of each suffix that has any, longest first; the empty suffix comes last."""
        longest = min(self._longest, len(history))
        suffixes = (tuple(history[len(history) - size :]) for size in range(longest, -1, -1))
        return [self._followers[suffix] for suffix in suffixes if suffix in self._followers]
