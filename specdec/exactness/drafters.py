"""Proof of a drafter: on a target with a few tokens, every text has the target's probability, whatever is drafted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import autoregressive
from specdec.decoding.protocols import AcceptanceRule, Drafter, Session, Verifier, traits_of
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.exactness.finding import EXACT, ROUNDED, Finding, in_words
from specdec.exactness.texts import Loop, TooManyOutcomes, enumerate_texts, joint_of_target
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel

MakeDrafter = Callable[[TargetModel], Drafter]
SIZES = ((5, 4), (3, 4), (3, 3), (2, 4), (2, 3))  # tokens of the target, tokens of a text; the largest first
MOST = 3_000  # outcomes; takes a few seconds
TOGETHER = 256  # outcomes per batch
PLAIN = SamplingParams(temperature=1.0)
# every processor that a drafter must apply as the target does; a penalty makes p depend on a node's path
PROCESSED = SamplingParams(temperature=0.7, top_k=3, top_p=0.95, repetition_penalty=1.3)
GREEDY_TOKENS = 16
PROMPTS = [0, 1, 2, 0, 1], [1, 0, 1, 1, 0, 1, 2, 1]  # n-gram drafters find matches in these


@dataclass(frozen=True)
class DrafterProof:
    """A drafter under test.

    Args:
        make: makes the drafter for a target, with untrained weights if it needs some.
        verifier: makes the verifier of a target.
        rule: a lossless rule that takes the drafter's trees.
        sizes: (tokens of the target, tokens of a text). The first pair with at most `most` outcomes is used.
        most: maximum number of outcomes.
    """

    make: MakeDrafter
    verifier: Callable[[TargetModel], Verifier]
    rule: AcceptanceRule
    sizes: Sequence[tuple[int, int]] = SIZES
    most: int = MOST

    def findings(self) -> list[Finding]:
        """Check greedy text, then the distribution of sampled text without and with logits processors.

        A drafter for temperature 0 only must refuse to sample.
        """
        if traits_of(self.make(few_tokens(self.sizes[-1][0]))).greedy_only:
            return [self._greedy(), self._refuses_to_sample()]
        return [self._greedy(), self._sampled("temperature 1", PLAIN), self._sampled("all processors", PROCESSED)]

    def _refuses_to_sample(self) -> Finding:
        what, target = "refuses a temperature above 0, as it declares", few_tokens(self.sizes[-1][0])
        try:
            self.make(target).start(Session(target, PROMPTS, PLAIN, 64))
        except InputError:
            return Finding(what, 1)
        except Exception as error:
            return Finding(what, 1, failure=in_words(error))
        return Finding(what, 1, failure="it starts; declare Traits(greedy_only=False), or refuse")

    def _greedy(self) -> Finding:
        """Compare greedy text with plain decoding, in a ragged batch and alone."""
        what, target = "temperature 0, against plain decoding", few_tokens(8)
        prompts = [[1, 2, 3, 1, 2], [4], [5, 5, 5], [0, 1, 0, 1, 0, 1, 0]]
        parts = (SamplingParams(), StopRule(GREEDY_TOKENS))
        right = [autoregressive([prompt], target, *parts, [[0]]).texts[0] for prompt in prompts]
        seeds = [[0]] * len(prompts)
        try:
            drafter = self.make(target)
            decoder = Decoder(drafter, self.verifier(target), self.rule, *parts)
            texts = decoder.speculative(prompts, seeds, validate=True).texts
            texts += [decoder.speculative([prompt], [[0]], validate=True).texts[0] for prompt in prompts]
        except Exception as error:
            return Finding(what, 0, failure=in_words(error))
        wrong = sum(ours != theirs for ours, theirs in zip(texts, 2 * right, strict=True))
        return Finding(what, len(texts), failure=f"{wrong} of {len(texts)} texts differ" if wrong else "")

    def _sampled(self, name: str, sampling: SamplingParams) -> Finding:
        """Compare the texts' joint distribution with the target's.

        First many outcomes share a batch. If that fails for a drafter whose trees may depend on the other rows, each
        outcome runs alone.
        """
        for vocab, tokens in self.sizes:
            what = f"{name}: texts of {tokens} tokens, {vocab} in all"
            try:
                together = self._enumerated(what, sampling, vocab, tokens, TOGETHER)
                if together.passed or not self._reads_the_batch():
                    return together
                alone = self._enumerated(what, sampling, vocab, tokens, 1)
            except TooManyOutcomes:
                continue
            note = f"{alone.note}; alone only: in a batch the very tokens depend on the other rows"
            return replace(alone, note=note) if alone.passed else alone
        smallest = "{} tokens, texts of {}".format(*self.sizes[-1])
        raise InputError(
            "drafter",
            expected=f"at most {self.most:,} outcomes with the smallest of `sizes` ({smallest})",
            got="more",
            fix="draft fewer nodes (drafter.widths=[2], drafter.tree=2, drafter.depth=1 ...), or raise most",
        )

    def _reads_the_batch(self) -> bool:
        """Whether a row's tree may depend on the other rows: on their past, or because its nodes are numbered
        by them."""
        traits = traits_of(self.make(few_tokens(self.sizes[-1][0])))
        return traits.remembers or traits.exit_layer is not None

    def _enumerated(self, what: str, sampling: SamplingParams, vocab: int, tokens: int, together: int) -> Finding:
        target = few_tokens(vocab)
        prompts = [[token % vocab for token in prompt] for prompt in PROMPTS]
        loop = Loop(lambda: self.make(target), self.verifier(target), self.rule, sampling, tokens)
        try:
            texts = enumerate_texts(loop, prompts, together, self.most)
        except TooManyOutcomes:
            raise
        except Exception as error:
            return Finding(what, 0, failure=in_words(error))
        right = joint_of_target(target, sampling, prompts, tokens)
        apart = float((texts.joint - right).abs().nan_to_num(nan=1.0).max())
        tolerance = EXACT if texts.precise else ROUNDED
        failure = f"a text whose probability is {apart:.2g} off" if apart > tolerance else ""
        note = f"{texts.drafted:.2f} nodes drafted and {texts.accepted:.2f} accepted per text"
        return Finding(what, texts.outcomes, apart, tolerance, failure, note + ("" if texts.precise else "; q in fp32"))


def few_tokens(vocab: int) -> TargetModel:
    """Return a random target with `vocab` tokens in float64, computed by PyTorch."""
    return load_tiny(vocab=vocab, dtype="float64", device="cpu", runtime="stock")
