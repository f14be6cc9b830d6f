"""From logits to probabilities, and from probabilities to tokens.

Target and drafters share this code: p and q carry the same temperature, top-k, top-p, min-p, penalties and processors,
and q is exactly the distribution that was sampled from. The processors are those of `transformers`, in its order: the
generation config's and penalties, your own, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.decoding.processors import TextProcessors, not_used, processors_for
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.runtime.vocabulary import argmaxes, picks
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree, histories


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The defaults are greedy decoding.

    Args:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this much probability; 1.0 keeps all.
        repetition_penalty: divides positive logits (and multiplies negative ones) of tokens already in the prompt or
            the text; 1.0 is none (arXiv 1909.05858).
        min_p: keep tokens with at least this share of the best one's probability; 0.0 keeps all (arXiv 2407.01082).
        processors: other processors of `transformers`, applied before temperature to every node on its own path.
        texts: processors of each row of a batch, set by `bound`.

    `bound` adds the processors of a model's generation config. `speculative` and `autoregressive` call it for each
    batch.

    Raises:
        InputError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    processors: tuple[LogitsProcessor, ...] = ()
    texts: tuple[TextProcessors, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        t, k, p, penalty, least = self.temperature, self.top_k, self.top_p, self.repetition_penalty, self.min_p
        _require("temperature", t, _finite(t) and t >= 0, "a number >= 0", "use 0 for greedy decoding")
        _require("top_k", k, type(k) is int and k >= 0, "an integer >= 0", "use 0 to keep every token")
        _require("top_p", p, _finite(p) and 0 < p <= 1, "a number in (0, 1]", "use 1.0 to keep every token")
        _require(
            "repetition_penalty", penalty, _finite(penalty) and penalty > 0, "a number > 0", "use 1.0 for no penalty"
        )
        _require(
            "min_p", least, _finite(least) and 0 <= least <= 1, "a number in [0, 1]", "use 0.0 to keep every token"
        )
        for processor in self.processors:
            known = isinstance(processor, LogitsProcessor)
            _require(
                "processors", repr(processor), known, "transformers' LogitsProcessor objects", "derive from that class"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def needs_history(self) -> bool:
        """Whether probabilities depend on earlier tokens, so that every node needs its own."""
        return any(self._texts)

    @cached_property
    def _texts(self) -> tuple[TextProcessors, ...]:
        """The processors of every row; before `bound`, one list for all."""
        own = processors_for(None, [], [], 0, self.repetition_penalty, self.processors)
        return self.texts or (TextProcessors(own, 0, frozenset()),)

    def bound(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop: StopRule) -> SamplingParams:
        """Return the same parameters for a batch of prompts, one per row, with the processors of the model's generation
        config.

        Raises:
            InputError: processors that cannot be applied to the paths of a tree.
        """
        eos = sorted(stop.eos)

        def of(prompt: Sequence[int]) -> TextProcessors:
            found = processors_for(model, prompt, eos, stop.max_new_tokens, self.repetition_penalty, self.processors)
            return TextProcessors(found, len(prompt), stop.eos)

        texts = tuple(of(prompt) for prompt in prompts)
        if any(texts):
            texts[0].require_replayable(prompts[0], model.config.get_text_config().vocab_size)
        return replace(self, texts=texts)

    def asks(self, model: PreTrainedModel, stop: StopRule) -> bool:
        """Whether processors change this model's logits, those of its generation config included."""
        return self.bound(model, [[0]], stop).needs_history

    def say_not_followed(self, model: PreTrainedModel) -> None:
        """Warn if the model's generation config has settings that no method of a run follows."""
        found = ", ".join(f"{name}={value!r}" for name, value in not_used(model.generation_config, self).items())
        if found:
            line = f"not used of the model's generation config, by any method: {found} (see generation.*)"
            warnings.warn(line, stacklevel=2)

    @property
    def names(self) -> str:
        """Class names of the processors, in their order."""
        return self._texts[0].names

    @cached_property
    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList()
        if self.temperature not in (0, 1):
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            warpers.append(MinPLogitsWarper(float(self.min_p)))
        return warpers

    def scores(
        self,
        logits: Float[Tensor, "rows vocab"],
        histories: Sequence[Sequence[int]] | None = None,
        lenient: bool = False,
    ) -> Float[Tensor, "rows vocab"]:
        """Return logits in fp32 (or more) after the processors, before temperature.

        Args:
            logits: one row per text or node.
            histories: the tokens before each row of logits (prompt included), equally many for each row of a bound
                batch. Read only with `needs_history`.
            lenient: see `TextProcessors`; for drafters.

        Raises:
            InputError: a processor that fails, or leaves no token.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not self.needs_history:
            return logits
        assert histories is not None
        assert len(histories) == len(logits)
        scores, each = logits.clone(), len(logits) // len(self._texts)
        groups: dict[tuple[int, int], list[int]] = {}
        for row, history in enumerate(histories):
            groups.setdefault((row // each if each else 0, len(history)), []).append(row)
        for (text, _), rows in groups.items():
            scores[rows] = self._texts[text](logits[rows], [histories[row] for row in rows], lenient)
        return scores

    def tree_scores(
        self, logits: Float[Tensor, "batch nodes vocab"], tree: TokenTree, rows: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch nodes vocab"]:
        """Return `scores` at every node of a tree behind the committed tokens `rows`, computed level by level.

        A node that the processors forbid can never be kept. It and all nodes below it keep their logits.

        Raises:
            InputError: a processor that fails, or leaves no token.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not self.needs_history:
            return logits
        assert len(self._texts) in (1, tree.batch)
        scores, before = logits.clone(), histories(tree, rows)
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        for row in range(tree.batch):
            processors, level = self._texts[row % len(self._texts)], [0]
            while level:
                texts = [before[row * tree.nodes + node] for node in level]
                scores[row, level] = processors(logits[row, level], texts)
                going = {node for node, text in zip(level, texts, strict=True) if not processors.ended(text)}
                below = [i for i, parent in enumerate(parents[row]) if parent in going]
                if not below:
                    break
                of_child = scores[row, [parents[row][i] for i in below], [tokens[row][i] for i in below]].tolist()
                level = [i for i, score in zip(below, of_child, strict=True) if score > -math.inf]
        return scores

    def probabilities(
        self,
        logits: Float[Tensor, "rows vocab"],
        histories: Sequence[Sequence[int]] | None = None,
        lenient: bool = False,
    ) -> Float[Tensor, "rows vocab"]:
        """Return the distribution that a next token is drawn from; one-hot at temperature 0.

        A NaN or an infinite logit makes its whole row NaN, at any temperature.
        """
        return self.distribution(self.scores(logits, histories, lenient))

    def distribution(self, scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Return `probabilities` of logits that `scores` has already processed."""
        if self.greedy:
            best = argmaxes(scores)[:, None]
            zero = torch.where(best < 0, torch.nan, 0).to(scores)  # NaN, as softmax would give
            return zero.expand_as(scores).clone().scatter_(-1, best.clamp(min=0), zero + 1)
        no_history = torch.empty(len(scores), 0, dtype=torch.long, device=scores.device)  # none of them reads it
        return torch.softmax(self._warpers(no_history, scores), dim=-1)  # type: ignore[arg-type]


def _finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _require(name: str, got: object, ok: bool, expected: str, fix: str) -> None:
    if not ok:
        raise InputError(f"generation.{name}", expected=expected, got=repr(got), fix=fix)


@runtime_checkable
class Draws(Protocol):
    """The random decisions of one step.

    `slot` numbers them, so that a decision does not depend on how many others were made: slot i belongs to tree node i,
    slot 0 to the recovered or bonus token. Each slot decides at most once. Tests enumerate every outcome by
    implementing this protocol.
    """

    def bernoulli(self, probs: Float[Tensor, " batch"], slot: int) -> Bool[Tensor, " batch"]:
        """Return True with the given probability, for each row."""
        ...

    def categorical(self, probs: Float[Tensor, "batch vocab"], slot: int) -> Int[Tensor, " batch"]:
        """Draw an index for each row with (possibly unnormalised) probability `probs`."""
        ...


@dataclass(frozen=True)
class UniformDraws:
    """Makes its draws from one uniform number in [0, 1) per row and slot (float64)."""

    uniforms: Float[Tensor, "batch slots"]

    def bernoulli(self, probs: Float[Tensor, " batch"], slot: int) -> Bool[Tensor, " batch"]:
        return self.uniforms[:, slot] < probs

    def categorical(self, probs: Float[Tensor, "batch vocab"], slot: int) -> Int[Tensor, " batch"]:
        return picks(probs, self.uniforms[:, slot])


class GreedyDraws:
    """Makes the draws at temperature 0, where every probability is 0 or 1."""

    def bernoulli(self, probs: Float[Tensor, " batch"], slot: int) -> Bool[Tensor, " batch"]:
        return probs > 0

    def categorical(self, probs: Float[Tensor, "batch vocab"], slot: int) -> Int[Tensor, " batch"]:
        return argmaxes(probs)


@runtime_checkable
class RandomStreams(Protocol):
    """Gives the draws of every step: `Streams`, or an enumeration of all outcomes."""

    def draws(self, lengths: Sequence[int], phase: int, slots: int) -> Draws:
        """Return the draws of `phase` (`Streams.DRAFT` or `ACCEPT`) in the step in which rows have `lengths` committed
        tokens."""
        ...


class Streams:
    """One reproducible random stream per row, addressed and not advanced.

    The draws of a row at a step depend only on its seed and on its number of committed tokens, not on other rows, their
    trees or the device. So in fp32 a row's sampled text is the same alone and in a batch, if its trees are. Sampled
    early exit and adaptive trees may differ in a batch, but keep the distribution. Counter-based (Philox 4x64, Salmon
    et al. 2011, numpy's implementation).
    """

    DRAFT, ACCEPT = 0, 1

    def __init__(
        self,
        seeds: Sequence[Sequence[int]],
        sampling: SamplingParams,
        device: torch.device,
        random: bool | None = None,
    ) -> None:
        """Begin the streams.

        Args:
            seeds: a sequence of integers per row.
            sampling: how tokens are chosen.
            device: where draws are made.
            random: whether draws are random; None: at a temperature above 0.
        """
        self._keys = [np.random.SeedSequence(list(seed)).generate_state(2, np.uint64) for seed in seeds]
        self._random = not sampling.greedy if random is None else random
        self._device = device

    def draws(self, lengths: Sequence[int], phase: int, slots: int) -> Draws:
        """Return the draws of `phase` in the step in which rows have `lengths` committed tokens."""
        if not self._random:
            return GreedyDraws()
        rows = [
            np.random.Generator(np.random.Philox(key=key, counter=[0, 0, phase, length])).random(slots)
            for key, length in zip(self._keys, lengths, strict=True)
        ]
        return UniformDraws(on_device(np.stack(rows), self._device))


def draw_without_replacement(
    probs: Float[Tensor, "batch vocab"], count: int, draws: Draws, first_slot: int
) -> Int[Tensor, "batch count"]:
    """Draw `count` different tokens for each row, one after the other.

    Each token is drawn from `probs` without the earlier ones, renormalised. A row with too few tokens of positive
    probability is filled up with -1.

    Args:
        probs: the distribution of each row.
        count: tokens per row.
        draws: random draws.
        first_slot: slot that decides the first token. Slot `first_slot + i` decides token i, and is the node it
            becomes.
    """
    left = probs.clone()
    tokens = []
    for slot in range(first_slot, first_slot + count):
        exhausted = left.sum(-1) <= 0
        left[:, 0] += exhausted  # `categorical` needs some probability; the token drawn here is not used
        token = draws.categorical(left, slot)
        left.scatter_(1, token[:, None], 0.0)
        tokens.append(torch.where(exhausted, -1, token))
    return torch.stack(tokens, 1)
