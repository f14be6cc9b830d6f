"""The parts of a decoding step, chosen once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specdec.decoding.generate import Blocks, Generation, autoregressive, speculative
from specdec.decoding.protocols import AcceptanceRule, Drafter, Rows, Verifier
from specdec.decoding.sampling import RandomStreams, SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.metrics import StepRecord
from specdec.model.target import TargetModel


@dataclass(frozen=True)
class Decoder:
    """A drafter, a verifier and a rule, with the settings for choosing tokens and ending texts.

    Args:
        drafter: proposes trees.
        verifier: scores them; it owns the target.
        rule: decides which nodes are kept.
        sampling: how tokens are chosen.
        stop: when a text ends.
    """

    drafter: Drafter
    verifier: Verifier
    rule: AcceptanceRule
    sampling: SamplingParams
    stop: StopRule

    @property
    def target(self) -> TargetModel:
        return self.verifier.target

    def speculative(
        self,
        prompts: Rows,
        seeds: Sequence[Sequence[int]] | RandomStreams,
        steps: list[StepRecord] | None = None,
        validate: bool = False,
        on_blocks: Callable[[Blocks], None] | None = None,
    ) -> Generation:
        """Generate a batch with the drafter.

        Arguments as in `specdec.decoding.generate.speculative`.
        """
        parts = (self.drafter, self.verifier, self.rule, self.sampling, self.stop)
        return speculative(prompts, *parts, seeds, steps, validate, on_blocks)

    def autoregressive(self, prompts: Rows, seeds: Sequence[Sequence[int]]) -> Generation:
        """Generate a batch token by token with the same target: the baseline."""
        return autoregressive(prompts, self.target, self.sampling, self.stop, seeds)
