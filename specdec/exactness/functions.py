"""Rules as papers release them: a function `(p, q, draft, uniforms) -> tokens`, enumerated without a change.

The uniforms are objects. Each stands for an interval, at first [0, 1), which a comparison splits in two: the function
goes on in one part, and is run again for the other. So every outcome is found with its exact probability, whatever the
function does with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import eq
from typing import Any

import torch
from torch import Tensor

from specdec.decoding.protocols import ExactFor
from specdec.errors import InputError
from specdec.exactness.enumeration import Blocks, Tables
from specdec.exactness.faults import asked_again
from specdec.exactness.shapes import chain

Function = Callable[..., Sequence[int]]  # (p, q, draft, uniforms) -> tokens
MOST_COMPARISONS = 10_000  # splits in one call; a function that loops until it accepts would never end


class Uniform:
    """A number drawn uniformly from [0, 1), known as far as it was compared.

    Comparisons with numbers, and sums and products with numbers, are all that it can do.
    """

    __array_ufunc__ = None  # numpy leaves comparisons to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: _Path, interval: list[float], scale: float = 1.0, shift: float = 0.0) -> None:
        self._path, self._interval, self._scale, self._shift = path, interval, scale, shift

    def _affine(self, scale: float, shift: float) -> Uniform:
        return Uniform(self._path, self._interval, self._scale * scale, self._shift * scale + shift)

    def __add__(self, other: Any) -> Uniform:
        return self._affine(1.0, float(other))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Uniform:
        return self._affine(float(other), 0.0)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Uniform:
        return self._affine(1.0, -float(other))

    def __rsub__(self, other: Any) -> Uniform:
        return self._affine(-1.0, float(other))

    def __truediv__(self, other: Any) -> Uniform:
        return self._affine(1 / float(other), 0.0)

    def __neg__(self) -> Uniform:
        return self._affine(-1.0, 0.0)

    def __lt__(self, other: Any) -> bool:
        return self._below(float(other))

    __le__ = __lt__

    def __gt__(self, other: Any) -> bool:
        return not self._below(float(other))

    __ge__ = __gt__

    def __float__(self) -> float:
        expected, fix = "comparisons of the uniforms with numbers", "compare them instead, as in `u < p / q`"
        raise InputError("uniforms", expected=expected, got="one that is turned into a number", fix=fix)

    def _below(self, other: float) -> bool:
        """Decide whether the number is below another, which splits the interval if both are possible."""
        if self._scale == 0 or math.isnan(other):
            return self._shift < other
        cut = (other - self._shift) / self._scale
        low = self._path.split(self._interval, cut)
        return low if self._scale > 0 else not low


class _Path:
    """The decisions of one call: those of a script first, then always the lower part."""

    def __init__(self, script: Sequence[bool]) -> None:
        self.script, self.taken = script, list[bool]()
        self.forks: list[list[bool]] = []
        self.intervals: list[list[float]] = []

    def split(self, interval: list[float], cut: float) -> bool:
        low, high = interval
        if cut <= low or cut >= high:
            return cut >= high
        if len(self.taken) == MOST_COMPARISONS:
            expected, got = f"at most {MOST_COMPARISONS} comparisons", "more"
            raise InputError("uniforms", expected=expected, got=got, fix="draw from the distribution that is left")
        if len(self.taken) < len(self.script):
            below = self.script[len(self.taken)]
        else:
            below = True
            self.forks.append([*self.taken, False])
        self.taken.append(below)
        interval[1 if below else 0] = cut
        return below

    @property
    def weight(self) -> float:
        product = 1.0
        for low, high in self.intervals:
            product *= high - low
        return product


class Uniforms:
    """As many uniforms as the function wants: `uniforms[3]`, `next(uniforms)`, or a loop over them."""

    def __init__(self, path: _Path) -> None:
        self._path, self._next = path, 0

    def __getitem__(self, number: int) -> Uniform:
        if not isinstance(number, int) or number < 0:
            raise InputError("uniforms", expected="an index >= 0", got=repr(number), fix="count from 0")
        while len(self._path.intervals) <= number:
            self._path.intervals.append([0.0, 1.0])
        return Uniform(self._path, self._path.intervals[number])

    def __iter__(self) -> Uniforms:
        return self

    def __next__(self) -> Uniform:
        self._next += 1
        return self[self._next - 1]


class FunctionRule:
    """A function under test. It judges chains drawn from q, one at a time.

    Args:
        function: gets p [drafted + 1, vocab] and q [drafted, vocab] along the draft, the drafted tokens, and uniforms;
            returns the accepted tokens and the next one.
        name: name used in reports.
    """

    lossless = True
    exact_for = ExactFor(("with_replacement",), siblings=False)

    def __init__(self, function: Function, name: str) -> None:
        self.function, self.name = function, name

    def blocks(self, parents: Sequence[int], p: Tables, q: Tables, how: str) -> Blocks:
        """Enumerate the blocks of one step, as `specdec.exactness.enumeration.blocks_of` does for a rule.

        Args:
            parents: parents of a chain.
            p: the target's distributions.
            q: the drafter's distributions.
            how: ignored; only children do not differ.

        Raises:
            InputError: the function misuses the uniforms, returns tokens that are not the draft's, or draws elsewhere.
        """
        drafted = len(parents) - 1
        assert list(parents) == chain(drafted)
        by_length: dict[int, tuple[list[list[int]], list[float]]] = {}
        for number, weight in enumerate(Tables(q.levels[:drafted]).joint().tolist() if drafted else [1.0]):
            if weight == 0:
                continue
            tokens = [number // q.vocab ** (drafted - 1 - i) % q.vocab for i in range(drafted)]
            prefixes = [number // q.vocab ** (drafted - i) for i in range(drafted + 1)]
            p_along = torch.stack([p.levels[i][prefix] for i, prefix in enumerate(prefixes)])
            along = [q.levels[i][prefix] for i, prefix in enumerate(prefixes[:-1])]
            q_along = torch.stack(along) if along else p_along[:0]
            for block, share in self._outcomes(p_along, q_along, tokens):
                texts, weights = by_length.setdefault(len(block), ([], []))
                texts.append(block)
                weights.append(weight * share)
        lengths = sorted(by_length)
        return Blocks(
            [torch.tensor(by_length[n][0]) for n in lengths],
            [torch.tensor(by_length[n][1], dtype=torch.float64) for n in lengths],
        )

    def _outcomes(self, p: Tensor, q: Tensor, draft: list[int]) -> list[tuple[list[int], float]]:
        found, scripts = [], [list[bool]()]
        while scripts:
            path = _Path(scripts.pop())

            def call(again: bool, path: _Path = path) -> tuple[list[int], list[bool]]:
                now = _Path(path.taken) if again else path
                return self._called(p, q, draft, now), now.taken

            block, _ = asked_again(self.name, call, eq)
            found.append((block, path.weight))
            scripts += path.forks
        return found

    def _called(self, p: Tensor, q: Tensor, draft: list[int], path: _Path) -> list[int]:
        return self._checked(self.function(p.clone(), q.clone(), list(draft), Uniforms(path)), draft, p.shape[-1])

    def _checked(self, got: Any, draft: list[int], vocab: int) -> list[int]:
        tokens = [int(token) for token in got]
        accepted = tokens[:-1]
        if not tokens or accepted != draft[: len(accepted)] or not 0 <= tokens[-1] < vocab:
            expected, fix = f"a beginning of the draft {draft} and one token more", "return accepted + [next]"
            raise InputError(self.name, expected=expected, got=f"{tokens}, a path outside the tree", fix=fix)
        return tokens
