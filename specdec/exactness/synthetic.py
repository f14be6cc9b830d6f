"""Expected accepted lengths on random p and q, computed exactly, without a model and without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

import torch

from specdec.decoding.grow_fixed import TreeShape
from specdec.decoding.protocols import AcceptanceRule
from specdec.errors import InputError
from specdec.exactness.enumeration import Tables, emission, outcomes
from specdec.options import Count, NonNegative, Range, Seed, Share

MOST_OUTCOMES = 300_000  # takes a few seconds


@dataclass
class Study:
    """Random p and q, and the trees drawn from q.

    Args:
        widths: children per node at each depth.
        vocab: number of tokens.
        distances: how far q is moved away from p, 0 to 1.
        cases: random pairs per distance.
        sharpness: exponent of the uniform random numbers that p is normalised from. A larger one is more peaked.
        seed: seed of the first case.
        rules: pairs of how siblings are drawn and the rule that judges them, such as `with_replacement/exact`.

    Raises:
        InputError: an empty list, widths or a way of drawing that do not exist, or too many trees to enumerate.
    """

    widths: list[Count]
    vocab: Annotated[int, Range(2, 1000)]
    distances: list[Share]
    cases: Annotated[int, Range(1, 10_000)]
    sharpness: NonNegative
    seed: Seed
    rules: list[str]

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Return each way of drawing siblings with the name of its rule."""
        return [choice.partition("/")[::2] for choice in self.rules]

    def check(self) -> None:
        """Refuse empty lists, unknown ways of drawing, and too many trees."""
        for name in ("widths", "distances", "rules"):
            if not getattr(self, name):
                raise InputError(f"study.{name}", expected="at least one", got="none", fix="name some")
        for how, _ in self.choices:
            TreeShape(self.widths, how)
        if (trees := outcomes(self.widths, self.vocab)) > MOST_OUTCOMES:
            raise InputError(
                "study.widths and study.vocab",
                expected=f"at most {MOST_OUTCOMES:,} different trees",
                got=f"{trees:,}",
                fix="lower study.vocab or study.widths: every tree is enumerated",
            )

    def measured(self, how: str, rule: AcceptanceRule, distance: float) -> dict[str, Any]:
        """Return the means over the cases of the expected accepted length and of the total variation distance of p and
        q."""
        lengths, variations = [], []
        for case in range(self.cases):
            p, q = tables(self.vocab, len(self.widths), distance, self.sharpness, self.seed + case)
            lengths.append(emission(rule, self.widths, p, q, how).accepted)
            variations.append(float((p.levels[0] - q.levels[0]).abs().sum() / 2))
        return {
            "siblings": how,
            "rule": rule.name,
            "distance": distance,
            "total_variation": fmean(variations),
            "accepted": fmean(lengths),
        }

    def results(self, rules: Sequence[AcceptanceRule]) -> list[dict[str, Any]]:
        """Return `measured` for every choice at every distance.

        rules: rules in the order of `choices`.
        """
        ways = [how for how, _ in self.choices]
        return [self.measured(how, rule, d) for how, rule in zip(ways, rules, strict=True) for d in self.distances]


def tables(vocab: int, depth: int, distance: float, sharpness: float, seed: int) -> tuple[Tables, Tables]:
    """Return random p for depth + 1 tokens, and q = (1 - distance) p + distance r, where r is independent and random
    like p.

    Args:
        vocab: number of tokens.
        depth: depth of the tree.
        distance: weight of r, 0 to 1.
        sharpness: see `Study`.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def level(d: int) -> torch.Tensor:
        numbers = torch.rand(vocab**d, vocab, generator=generator, dtype=torch.float64) ** sharpness
        return numbers / numbers.sum(-1, keepdim=True)

    p = [level(d) for d in range(depth + 1)]
    return Tables(p), Tables([(1 - distance) * p_d + distance * level(d) for d, p_d in enumerate(p[:-1])])
