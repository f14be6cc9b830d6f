"""How training goes, and how often it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from specdec.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """How training goes. Texts are counted, not tokens.

    epochs: passes over the training split; batch_size: texts in a step, over all processes; accumulation: micro-batches
    a step is made of; learning_rate rises over the first `warmup` (a share of all steps) and falls along a cosine to
    `final` of itself; clip: largest gradient norm, 0 for none; longest: tokens of a text that are used.

    Raises:
        InputError: a number out of range.
    """

    epochs: float = 3.0
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    longest: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("epochs", self.epochs > 0, "a number > 0"),
            ("batch_size", self.batch_size >= 1, "an integer >= 1"),
            ("accumulation", self.accumulation >= 1, "an integer >= 1"),
            ("learning_rate", self.learning_rate > 0, "a number > 0"),
            ("warmup", 0 <= self.warmup < 1, "a share in [0, 1)"),
            ("final", 0 <= self.final <= 1, "a share in [0, 1]"),
            ("clip", self.clip >= 0, "a number >= 0"),
            ("longest", self.longest >= 2, "an integer >= 2"),
        ):
            if not ok:
                raise InputError(f"training.{name}", expected=expected, got=getattr(self, name), fix="change it")

    def steps(self, texts: int) -> int:
        return max(math.ceil(self.epochs * texts / self.batch_size), 1)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a function of its number, so that there is nothing to restore."""
        warm = self.warmup * steps
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        share = (step - warm) / max(steps - warm, 1)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Reports:
    """How often (in steps) figures are written, the validation texts and the decoding path are looked at, and
    checkpoints are made; `validation_texts`: how many."""

    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    validation_texts: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                got = getattr(self, field.name)
                raise InputError(f"reports.{field.name}", expected="an integer >= 1", got=got, fix="raise it")
