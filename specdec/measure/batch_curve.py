"""Measure the speedup over batch size: the same texts decoded one, two, ... at a time, with drafts and without.

Every row runs to the token limit (EOS does not end it), so that all batch sizes do the same work and no row is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import Generation, longest_text
from specdec.decoding.protocols import Rows
from specdec.errors import InputError
from specdec.intervals import Interval, median_interval
from specdec.metrics import StepMetrics, StepRecord


@dataclass
class Decoding:
    """Results of one method at one batch size, over all prompts.

    Args:
        tokens: new tokens in one round.
        batches: batches in one round.
        seconds: time of each round, prefill included.
        prefill_seconds: time of the prefill in each round.
        steps: step records of all rounds.
    """

    tokens: int = 0
    batches: int = 0
    seconds: list[float] = field(default_factory=list)
    prefill_seconds: list[float] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)

    def add(self, batches: Sequence[Generation]) -> None:
        """Add the generations of one round."""
        self.tokens = sum(len(text) for done in batches for text in done.texts)
        self.batches = len(batches)
        self.seconds.append(sum(done.seconds for done in batches))
        self.prefill_seconds.append(sum(done.prefill_seconds for done in batches))
        self.steps += [step for done in batches for step in done.steps]

    def tokens_per_second(self) -> float:
        return median_interval([self.tokens / s for s in self.seconds])[0]

    def faster_than(self, other: Decoding) -> tuple[float, Interval | None]:
        """Return the ratio of tokens/s, prefill included: median over rounds, with its 95 % interval."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return median_interval([self.tokens / a / (other.tokens / b) for a, b in pairs])

    def decodes_faster_than(self, other: Decoding) -> tuple[float, Interval | None]:
        """Return the ratio of tokens/s without prefill: median over rounds, with its 95 % interval."""
        pairs = zip(self.decoding_seconds(), other.decoding_seconds(), strict=True)
        return median_interval([self.tokens / a / (other.tokens / b) for a, b in pairs])

    def decoding_seconds(self) -> list[float]:
        """Return the seconds of each round without prefill."""
        return [s - p for s, p in zip(self.seconds, self.prefill_seconds, strict=True)]


@dataclass
class BatchSize:
    size: int
    plain: Decoding = field(default_factory=Decoding)
    drafted: Decoding = field(default_factory=Decoding)

    def as_dict(self) -> dict[str, Any]:
        speedup, interval = self.drafted.faster_than(self.plain)
        metrics = StepMetrics.of(self.drafted.steps)
        plain_steps = self.plain.tokens // self.size - self.plain.batches  # the prefill emits the first token of a text
        return {
            "batch_size": self.size,
            "autoregressive_tokens_per_second": self.plain.tokens_per_second(),
            "tokens_per_second": self.drafted.tokens_per_second(),
            "speedup": speedup,
            "speedup_ci95": interval,
            "tokens_per_step": metrics.tokens_per_step,
            "phase_ms": metrics.phase_ms,
            "autoregressive_step_ms": median_interval(self.plain.decoding_seconds())[0] / plain_steps * 1e3,
            "rounds": {
                name: {"tokens": d.tokens, "seconds": d.seconds, "prefill_seconds": d.prefill_seconds}
                for name, d in (("autoregressive", self.plain), ("speculative", self.drafted))
            },
        }


@dataclass(frozen=True)
class BatchCurve:
    """Decode all prompts several times at each batch size, with drafts and without, in turns.

    Args:
        prompts: token ids of each prompt.
        decoder: the decoder; its `stop` gives the number of new tokens.
        sizes: batch sizes.
        rounds: number of times that all prompts are decoded at each size.

    Raises:
        InputError: no rounds, no sizes, fewer than 2 new tokens (which need no step), a size that does not divide the
            number of prompts, or a prompt that is empty or too long.
    """

    prompts: Rows
    decoder: Decoder
    sizes: Sequence[int]
    rounds: int

    def __post_init__(self) -> None:
        least = {
            "rounds": (self.rounds, 1),
            "max_new_tokens": (self.decoder.stop.max_new_tokens, 2),
            "sizes": (len(self.sizes), 1),
        }
        for name, (value, limit) in least.items():
            if value < limit:
                raise InputError(f"batch.{name}", expected=f"{limit} or more", got=value, fix="raise it")
        uneven = [size for size in self.sizes if size < 1 or len(self.prompts) % size]
        if uneven:
            whole = f"sizes that divide the {len(self.prompts)} prompts there are"
            raise InputError("batch.sizes", expected=whole, got=uneven, fix="choose other sizes, or more prompts")
        window = self.decoder.target.context_window
        longest_text(self.prompts, self.decoder.stop, window, "a prompt of the batch curve")

    def run(self, on_size: Callable[[Any], None] = lambda _: None) -> list[BatchSize]:
        """Run all rounds; every second one takes the sizes in reverse order.

        Args:
            on_size: called after each size of each round.
        """
        curve = [BatchSize(size) for size in self.sizes]
        for number in range(self.rounds):
            for at in curve[:: -1 if number % 2 else 1]:
                plain, drafted = [], []
                for start in range(0, len(self.prompts), at.size):
                    ids = self.prompts[start : start + at.size]
                    seeds = [[0, start + row] for row in range(at.size)]
                    plain.append(self.decoder.autoregressive(ids, seeds))
                    drafted.append(self.decoder.speculative(ids, seeds))
                at.plain.add(plain)
                at.drafted.add(drafted)
                on_size(at)
        return curve
