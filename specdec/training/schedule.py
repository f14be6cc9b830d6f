"""Settings of a training run: length, batch size, learning rate, and how often it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from specdec.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Length, batch size and learning rate of a training run. Sizes count texts, not tokens.

    Args:
        epochs: passes over the training split.
        batch_size: texts in a step, over all processes.
        accumulation: micro-batches per step and process.
        learning_rate: highest learning rate; it rises during the warmup and then falls along a cosine.
        warmup: length of the warmup, as a share of all steps.
        final: learning rate at the end, as a share of `learning_rate`.
        weight_decay: weight decay of AdamW.
        clip: largest norm of the gradient; 0 for no clipping.
        longest: texts are cut to this number of tokens.
        seed: seed of the module's initial values and of the order of the texts.

    Raises:
        InputError: a number is out of range.
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
        """Return the learning rate of a step. It depends on the step's number only, so no state must be restored.

        Args:
            step: index of the step.
            steps: number of all steps.
        """
        warm = self.warmup * steps
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        share = (step - warm) / max(steps - warm, 1)
        return self.learning_rate * (self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Reports:
    """How often a training run reports.

    Args:
        log_every: steps between reports of the training loss.
        evaluate_every: steps between evaluations on validation texts and through the decoding path.
        checkpoint_every: steps between checkpoints.
        validation_texts: number of validation texts that an evaluation reads.
    """

    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    validation_texts: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                got = getattr(self, field.name)
                raise InputError(f"reports.{field.name}", expected="an integer >= 1", got=repr(got), fix="raise it")
