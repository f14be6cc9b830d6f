"""Figures as (total, weight) by name: they add up exactly over micro-batches, steps and processes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Window:
    """Sums since the last report."""

    sums: Sums = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    norm: float = 0.0
    _begun: float = field(default_factory=time.perf_counter)

    def add(self, sums: Sums, tokens: int, norm: float) -> None:
        add(self.sums, sums)
        now = time.perf_counter()
        self.tokens, self.seconds, self.norm = self.tokens + tokens, self.seconds + now - self._begun, norm
        self._begun = now

    def restart(self) -> None:
        """What happened since the last step was not training."""
        self._begun = time.perf_counter()


def add(into: Sums, sums: Sums) -> None:
    for name, (total, weight) in sums.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + weight)


def means(sums: Sums) -> dict[str, float]:
    return {name: float(total) / (float(weight) or 1.0) for name, (total, weight) in sums.items()}
