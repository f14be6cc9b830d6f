"""Every text that the decoding loop can write, with its probability. Drafter, verifier, rule and loop run unchanged.

Each row of a batch is one outcome: rows with the same prompt differ in their draws. Equal states are not merged, so
that drafter and caches remember earlier steps as they do in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.decoding.decoder import Decoder
from specdec.decoding.protocols import AcceptanceRule, Drafter, Rows, Verifier
from specdec.decoding.sampling import Draws, SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.exactness.enumeration import EnumeratedDraws, Enumeration
from specdec.model.target import TargetModel


@dataclass(frozen=True)
class Loop:
    """The parts of the decoding loop.

    Args:
        drafter: makes a new drafter, which remembers nothing of earlier outcomes.
        verifier: scores trees.
        rule: decides which nodes are kept.
        sampling: how tokens are chosen.
        tokens: length of a text.
    """

    drafter: Callable[[], Drafter]
    verifier: Verifier
    rule: AcceptanceRule
    sampling: SamplingParams
    tokens: int


@dataclass(frozen=True)
class Texts:
    """The result of an enumeration.

    Args:
        joint: probability of every text after each prompt, [prompts vocab^tokens].
        accepted: expected number of accepted tokens per text.
        drafted: expected number of drafted nodes per text.
        outcomes: number of enumerated outcomes.
        precise: whether all probabilities were given in float64.
    """

    joint: Tensor
    accepted: float
    drafted: float
    outcomes: int
    precise: bool


class TooManyOutcomes(Exception):
    """More outcomes than may be enumerated."""


class EnumeratedStreams:
    """The random streams of rows that follow an enumeration.

    The address of a decision is made of the tokens written so far, the phase (drafting or accepting), and the node, as
    in `Streams`. Rows of full length decide nothing.

    Args:
        enumeration: makes the decisions.
        prompts: length of each row's prompt.
        slots: slots per phase.
        tokens: length of a text.
    """

    def __init__(self, enumeration: Enumeration, prompts: Sequence[int], slots: int, tokens: int) -> None:
        self._enumeration, self._prompts = enumeration, torch.tensor(list(prompts))
        self._slots, self._tokens = slots, tokens

    @staticmethod
    def addresses(slots: int, tokens: int) -> int:
        """Return the number of addresses of a row."""
        return 2 * slots * (tokens + 1)

    def draws(self, lengths: Sequence[int], phase: int, slots: int) -> Draws:
        written = torch.tensor(list(lengths)) - self._prompts
        live = written < self._tokens
        first = (2 * written.clamp(min=0, max=self._tokens) + phase) * self._slots
        return EnumeratedDraws(self._enumeration, first, self._slots, live)


def enumerate_texts(loop: Loop, prompts: Rows, together: int, most: int) -> Texts:
    """Run the loop for every outcome of its draws.

    Args:
        loop: the loop under test.
        prompts: token ids; a batch mixes them.
        together: outcomes per batch. 1 if a row's trees depend on the other rows.
        most: maximum number of outcomes.

    Raises:
        TooManyOutcomes: there are more than `most`.
        InputError: a decision, a tree or a verdict that is not allowed.
    """
    vocab, drafter = loop.verifier.target.vocab_size, loop.drafter()
    joint = torch.zeros(len(prompts), vocab**loop.tokens, dtype=torch.float64)
    accepted = drafted = 0.0
    outcomes, precise = 0, True
    slots = drafter.max_nodes
    begun = Enumeration.begin(len(prompts), EnumeratedStreams.addresses(slots, loop.tokens))
    start, script, weight = torch.arange(len(prompts)), begun.script, begun.weight
    while len(start):
        if outcomes + len(start) > most:
            raise TooManyOutcomes
        mine, enumeration = start[-together:], Enumeration(script[-together:], weight[-together:])
        start, script, weight = start[:-together], script[:-together], weight[:-together]
        rows = [prompts[i] for i in mine.tolist()]
        streams = EnumeratedStreams(enumeration, [len(row) for row in rows], slots, loop.tokens)
        decoder = Decoder(drafter, loop.verifier, loop.rule, loop.sampling, StopRule(loop.tokens))
        done = decoder.speculative(rows, streams, validate=True)
        joint.index_put_((mine, _numbers(done.texts, vocab)), enumeration.weight, accumulate=True)
        weights = enumeration.weight.tolist()
        accepted += sum(weights[step.row] * step.accepted for step in done.steps) / len(prompts)
        drafted += sum(weights[step.row] * step.nodes for step in done.steps) / len(prompts)
        outcomes, precise = outcomes + len(rows), precise and enumeration.precise
        new = enumeration.left()
        start, script, weight = (
            torch.cat(pair) for pair in zip((start, script, weight), (mine[new.row], *new[1:]), strict=True)
        )
        if together == 1:
            drafter = loop.drafter()
    return Texts(joint, accepted, drafted, outcomes, precise)


def joint_of_target(target: TargetModel, sampling: SamplingParams, prompts: Rows, tokens: int) -> Tensor:
    """Return the probability of every text after each prompt, [prompts vocab^tokens], by the stock model without a
    cache.

    Args:
        target: the target.
        sampling: how tokens are chosen.
        prompts: token ids.
        tokens: length of a text.
    """
    vocab = target.vocab_size
    joints = []
    for prompt in prompts:
        joint, texts = torch.ones(1, dtype=torch.float64), [list(prompt)]
        for _ in range(tokens):
            with torch.inference_mode(), target.stock() as model:
                logits = model(input_ids=torch.tensor(texts, device=target.device), use_cache=False).logits[:, -1]
            joint = (joint[:, None] * sampling.probabilities(logits, texts).double().cpu()).flatten()
            texts = [[*text, token] for text in texts for token in range(vocab)]
        joints.append(joint)
    return torch.stack(joints)


def _numbers(texts: Sequence[Sequence[int]], vocab: int) -> Tensor:
    """Read each text as a number with digits of base `vocab`."""
    number = torch.zeros(len(texts), dtype=torch.long)
    for token in torch.tensor(texts).unbind(1):
        number = number * vocab + token
    return number
