"""Figures as (total, weight) by name; these add up exactly over micro-batches, steps and processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Sums = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Window:
    """Sums since the last report.

    Args:
        sums: (total, weight) by name.
        tokens: tokens read.
        seconds: time of the steps.
        norm: norm of the newest step's gradient.
    """

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

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Window:
        """Return the window that `state` described."""
        sums = {
            name: tuple(torch.tensor(part, dtype=torch.float64) for part in pair)
            for name, pair in state["sums"].items()
        }
        return cls(sums, state["tokens"], state["seconds"], state["norm"])  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Return the sums so far as JSON values, for a checkpoint; JSON keeps every bit of a double."""
        sums = {name: [float(total), float(weight)] for name, (total, weight) in self.sums.items()}
        return {"sums": sums, "tokens": self.tokens, "seconds": self.seconds, "norm": self.norm}

    def restart(self) -> None:
        """Leave the time since the last step out of `seconds`, because it was not training."""
        self._begun = time.perf_counter()


def add(into: Sums, sums: Sums) -> None:
    for name, (total, weight) in sums.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + weight)


def means(sums: Sums) -> dict[str, float]:
    """Return total / weight of every figure; figures with weight 0 are left out."""
    return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight)}
