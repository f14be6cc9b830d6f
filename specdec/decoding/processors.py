"""Logits processors of `transformers`, applied to every node on its own path.

A model's generation config lists some (suppressed or forced tokens, no repeated n-grams, ...), and a caller may add
others, grammars and constraints included. Both are the same objects that `model.generate` would use, in its order. Each
is called with the tokens of one text and their scores. Of a model this module reads only the generation config.

Most processors are functions of the tokens. A processor that keeps a state between calls (such as a grammar that
follows the text) is copied at every node, so that each path has its own state.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.generation import logits_process as library

from specdec.errors import InputError

WHAT = "generation.processors"
STATES = 1024  # states of stateful processors that are kept for a text; others are computed again
# settings of a generation config that are followed as `generate` follows them
OBEYED = (
    "sequence_bias", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
# settings that `SamplingParams` replaces with its own of the same name
OWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# settings that neither our loop nor the references follow, with the values that have no effect
UNUSED: dict[str, tuple[Any, ...]] = {
    "top_h": (), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "guidance_scale": (1, 1.0),
    "watermarking_config": (), "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,),
    "penalty_alpha": (0.0,), "dola_layers": (), "token_healing": (False,), "max_time": (),
    "prompt_lookup_num_tokens": (), "constraints": (), "force_words_ids": (),
}  # fmt: skip
# processors whose result in a row depends only on the row's earlier tokens and scores
FUNCTIONS = (
    library.MinLengthLogitsProcessor, library.MinNewTokensLengthLogitsProcessor,
    library.RepetitionPenaltyLogitsProcessor, library.EncoderRepetitionPenaltyLogitsProcessor,
    library.NoRepeatNGramLogitsProcessor, library.EncoderNoRepeatNGramLogitsProcessor,
    library.SequenceBiasLogitsProcessor, library.NoBadWordsLogitsProcessor, library.ForcedBOSTokenLogitsProcessor,
    library.ForcedEOSTokenLogitsProcessor, library.InfNanRemoveLogitsProcessor, library.ExponentialDecayLengthPenalty,
    library.SuppressTokensAtBeginLogitsProcessor, library.SuppressTokensLogitsProcessor,
    library.TemperatureLogitsWarper, library.TopKLogitsWarper, library.TopPLogitsWarper, library.MinPLogitsWarper,
    library.TypicalLogitsWarper, library.EpsilonLogitsWarper, library.EtaLogitsWarper, library.LogitNormalization,
)  # fmt: skip


def obeyed(config: GenerationConfig | None) -> dict[str, Any]:
    """Return the settings of a model's generation config that change its greedy text, by name."""
    return {name: value for name in OBEYED if (value := getattr(config, name, None)) not in (None, False)}


def not_used(config: GenerationConfig | None, own: object) -> dict[str, Any]:
    """Return the settings of a model's generation config that no method of a run follows: `SamplingParams` replaces
    them, or nothing implements them.

    own: the `SamplingParams` in use.
    """
    found = {name: getattr(config, name, None) for name in (*OWN, *UNUSED)}
    same = {name: (getattr(own, name),) for name in OWN} | UNUSED
    return {name: value for name, value in found.items() if value is not None and value not in same[name]}


def plain_config(model: PreTrainedModel, eos: Sequence[int], **values: Any) -> GenerationConfig:
    """Return a generation config with those of the model's settings that are followed, and with `values`."""
    config = GenerationConfig(**obeyed(model.generation_config), **values)
    config.eos_token_id = list(eos) or None
    return config


def processors_for(
    model: PreTrainedModel | None,
    prompt: Sequence[int],
    eos: Sequence[int],
    max_new_tokens: int,
    repetition_penalty: float,
    own: Sequence[LogitsProcessor],
) -> LogitsProcessorList:
    """Return the processors of one text, in the order of `generate`: those of the model's config, the penalty, your
    own.

    Args:
        model: the model, or None for no generation config.
        prompt: token ids of the prompt.
        eos: token ids that end the text.
        max_new_tokens: maximum number of new tokens.
        repetition_penalty: as in `SamplingParams`.
        own: the caller's processors.

    Raises:
        InputError: a value of the generation config that `transformers` refuses.
    """
    if not isinstance(model, GenerationMixin):
        penalty = [library.RepetitionPenaltyLogitsProcessor(float(repetition_penalty))]
        return LogitsProcessorList([*(penalty if repetition_penalty != 1 else []), *own])
    ids = torch.tensor([list(prompt)], device=model.device)
    try:
        config = plain_config(model, eos, repetition_penalty=float(repetition_penalty), do_sample=False)
        config.max_length = len(prompt) + max_new_tokens
        config._eos_token_tensor = torch.tensor(list(eos), device=model.device) if eos else None
        return model._get_logits_processor(
            config, len(prompt), ids, logits_processor=LogitsProcessorList(own), device=model.device, model_kwargs={}
        )
    except (TypeError, ValueError, AttributeError) as error:
        names = ", ".join(f"{name}={value!r}" for name, value in obeyed(model.generation_config).items())
        raise InputError(
            "the target's generation config",
            expected="values that transformers takes",
            got=f"{names or 'none'} ({error})",
            fix="mend generation_config.json",
        ) from error


class TextProcessors:
    """Applies the processors of one text.

    Args:
        processors: in the order in which they are applied.
        start: tokens of the prompt. After it, stateful processors are called once per token.
        eos: ids that end the text. Behind one, processors are not applied.
    """

    def __init__(self, processors: LogitsProcessorList, start: int, eos: frozenset[int]) -> None:
        self._processors, self._start, self._eos = processors, start, eos
        self._functions = all(type(processor) in FUNCTIONS for processor in processors)
        self._states: OrderedDict[tuple[int, ...], LogitsProcessorList] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._processors)

    @property
    def names(self) -> str:
        return ", ".join(type(processor).__name__ for processor in self._processors)

    def ended(self, text: Sequence[int]) -> bool:
        """Whether the last token of `text` is a new one that ends it."""
        return len(text) > self._start and text[-1] in self._eos

    def __call__(
        self, logits: Float[Tensor, "nodes vocab"], histories: Sequence[Sequence[int]], lenient: bool = False
    ) -> Float[Tensor, "nodes vocab"]:
        """Return the scores after texts of equal length.

        lenient: if a processor fails or leaves no token, keep the logits. A drafter may look beyond tokens that the
        processors forbid; the target never does.

        Raises:
            InputError: a processor that fails, or leaves no token.
        """
        going = [i for i, text in enumerate(histories) if not self.ended(text)]
        if not self._processors or not going:
            return logits
        scores = logits.clone()
        for group in [going] if self._functions else [[i] for i in going]:
            scores[group] = self._applied([tuple(histories[i]) for i in group], logits[group], lenient)
        return scores

    def _applied(self, texts: Sequence[tuple[int, ...]], logits: Tensor, lenient: bool) -> Tensor:
        try:
            if self._functions:
                scores = self._called(self._processors, texts, logits)
            else:
                state = self._before(texts[0], logits)
                scores = self._called(state, texts, logits)
                self._remember(texts[0], state)
        except InputError:
            if lenient:
                return logits
            raise
        nothing = scores.amax(-1) == -torch.inf
        if lenient:
            return torch.where(nothing[:, None], logits, scores)
        if bool(nothing.any()):
            got = f"none after {len(texts[0])} tokens ({self.names})"
            raise InputError(WHAT, expected="a token that may follow", got=got, fix="check what they forbid together")
        return scores

    def _called(self, processors: LogitsProcessorList, texts: Sequence[tuple[int, ...]], logits: Tensor) -> Tensor:
        try:
            scores = processors(torch.tensor(texts, device=logits.device), logits.clone())  # type: ignore[arg-type]
            if scores.shape != logits.shape:
                raise ValueError(f"scores of shape {tuple(scores.shape)} came back for {tuple(logits.shape)}")
            return scores.to(logits.dtype)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            expected = "processors that take a text's tokens [1, length] and its scores [1, vocabulary]"
            got = f"{self.names}, which failed after {len(texts[0])} tokens ({why})"
            raise InputError(WHAT, expected=expected, got=got, fix="mend or remove it") from error

    def _before(self, text: tuple[int, ...], logits: Tensor) -> LogitsProcessorList:
        """Return a copy of the processors in their state before `text`: called for every earlier token from the
        prompt's end on."""
        known = len(text) - 1
        while known >= self._start and text[:known] not in self._states:
            known -= 1
        state = _copied(self._states[text[:known]] if known >= self._start else self._processors)
        for end in range(max(known + 1, self._start), len(text)):
            self._called(state, [text[:end]], torch.zeros_like(logits))
            self._remember(text[:end], _copied(state))
        return state

    def _remember(self, text: tuple[int, ...], state: LogitsProcessorList) -> None:
        self._states[text] = state
        self._states.move_to_end(text)
        while len(self._states) > STATES:
            self._states.popitem(last=False)

    def require_replayable(self, prompt: Sequence[int], vocab: int) -> None:
        """Refuse processors whose copies give different results, because they draw random numbers or remember scores.

        Raises:
            InputError: names them.
        """
        if self._functions or not self._processors:
            return
        first, second = (torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
        texts = [tuple(prompt)]
        one, same, other = (_copied(self._processors) for _ in range(3))
        scores = [self._called(state, texts, s) for state, s in ((one, first), (same, first), (other, second))]
        texts = [(*prompt, int(scores[0].argmax()))]
        if texts[0][-1] not in self._eos:
            scores[2:] = [self._called(state, texts, first) for state in (one, other)]
        else:
            scores[2:] = scores[:2]
        if not all(torch.equal(a, b) for a, b in (scores[:2], scores[2:])):
            expected = "processors whose results depend on the tokens before and on the scores of one call"
            got = f"{self.names}, which draw random numbers or remember scores"
            raise InputError(WHAT, expected=expected, got=got, fix="leave them out: a tree has many paths")


def _copied(processors: LogitsProcessorList) -> LogitsProcessorList:
    try:
        return copy.deepcopy(processors)
    except Exception as error:
        names = ", ".join(type(processor).__name__ for processor in processors)
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            WHAT,
            expected="processors that can be copied, one for each path of a tree",
            got=f"{names} ({why})",
            fix="give the class a __deepcopy__",
        ) from error
