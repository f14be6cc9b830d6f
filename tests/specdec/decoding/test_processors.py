"""With a model's generation config and a caller's processors, text is that of `generate`, drafted or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from drafters.draft_model.drafter import DraftModel
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from drafters.ngram_lm import NgramLM
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.processors import not_used, obeyed
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure.rivals import TransformersGenerate
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.text.refill import Refill, Request
from tests.conftest import tiny_draft
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]
NEW, GREEDY = 14, SamplingParams()
CONFIGS: list[dict[str, Any]] = [
    {"suppress_tokens": list(range(0, 250, 2))},
    {"begin_suppress_tokens": list(range(1, 250, 2)), "no_repeat_ngram_size": 2},
    {"forced_eos_token_id": 7, "min_new_tokens": 5, "min_length": 9},
    {"forced_bos_token_id": 12, "sequence_bias": {(9,): 4.0, (5, 6): 30.0}},
    {"bad_words_ids": [[17], [43, 256], [253]], "encoder_repetition_penalty": 0.3},
    {"encoder_no_repeat_ngram_size": 1, "exponential_decay_length_penalty": (2, 1.9)},
]


class Grammar(LogitsProcessor):
    """Follows the text with a state: a token of the same parity as the number of calls may not come next."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == self.calls % 2, -torch.inf)


class Strict(LogitsProcessor):
    """Refuses to be asked behind what it forbade, as many grammars do."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if (input_ids[:, -1] > 200).any():
            raise ValueError("no such state")
        return scores.masked_fill(torch.arange(scores.shape[-1]) > 200, -torch.inf)


class Dice(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + torch.rand_like(scores)


class Dead(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf)


def target_with(config: dict[str, Any]) -> TargetModel:
    target = load_tiny(device="cpu")
    target.model.generation_config = GenerationConfig(eos_token_id=sorted(target.eos), **config)
    return target


def generated(target: TargetModel, processors: list[LogitsProcessor] | None = None) -> list[list[int]]:
    """Each prompt by `generate` itself, with the model's own config and nothing of ours."""
    texts = []
    with target.stock() as model, torch.inference_mode():
        for prompt in PROMPTS:
            own = LogitsProcessorList(copy.deepcopy(processors or []))
            ids = torch.tensor([prompt])
            real = torch.ones_like(ids)
            out = model.generate(
                ids, attention_mask=real, max_new_tokens=NEW, do_sample=False, pad_token_id=0, logits_processor=own
            )
            texts.append(out[0, len(prompt) :].tolist())
    return texts


def drafters() -> list[Drafter]:
    draft = tiny_draft()
    return [
        Ngram(3, 1, 5, 3, 12),
        DraftModel(draft, [3, 2, 1]),
        DraftModel(draft, nodes=6, depth=3),
        Medusa("fresh", 12),
    ]


def require_all_equal(target: TargetModel, sampling: SamplingParams, expected: list[list[int]]) -> None:
    stop = StopRule(NEW, target.eos)
    assert autoregressive(PROMPTS, target, sampling, stop, SEEDS).texts == expected
    for drafter in drafters():
        done = speculative(PROMPTS, drafter, TreeAttention(target), Exact(), sampling, stop, SEEDS)
        assert done.texts == expected
    oracle = speculative(PROMPTS, drafters()[0], PathByPath(target), Exact(), sampling, stop, SEEDS)
    assert oracle.texts == expected
    texts, _ = TransformersGenerate("transformers").generate(PROMPTS, target, sampling, stop, 0)
    assert texts == expected


@pytest.mark.parametrize("config", CONFIGS, ids=" ".join)
def test_the_models_generation_config_is_obeyed_as_generate_obeys_it(config: dict[str, Any]) -> None:
    target = target_with(config)
    expected = generated(target)
    plain = [
        autoregressive([p], load_tiny(device="cpu"), GREEDY, StopRule(NEW, target.eos), [[0]]).texts[0] for p in PROMPTS
    ]
    assert expected != plain  # it changes the text
    assert sorted(obeyed(target.model.generation_config)) == sorted(config)
    require_all_equal(target, GREEDY, expected)
    refill = Refill(target, StopRule(NEW, target.eos), 2, 6)
    found: dict[int, list[int]] = {}
    requests = [Request(p, GREEDY, [0], i) for i, p in enumerate(PROMPTS)]
    refill.run(requests, lambda done: found.update({done.request.tag: done.answer}))
    assert [found[i] for i in range(3)] == expected


@pytest.mark.parametrize(
    "processors",
    [[Grammar()], [Strict()], [NoRepeatNGramLogitsProcessor(2), Grammar()]],
    ids=["with a state", "strict", "two"],
)
def test_own_processors_follow_each_path_of_a_tree(processors: list[LogitsProcessor]) -> None:
    target = load_tiny(device="cpu")
    sampling = SamplingParams(processors=tuple(processors))
    require_all_equal(target, sampling, generated(target, processors))


def test_settings_of_the_model_that_are_ours_do_not_reach_the_references() -> None:
    """A sampling model's config leaves greedy text alone, and no processor of it is applied to sampled text twice."""
    config = {"temperature": 0.2, "top_k": 3, "repetition_penalty": 3.0, "typical_p": 0.2, "num_beams": 1}
    target, plain = target_with(config), load_tiny(device="cpu")
    stop = StopRule(NEW, target.eos)
    expected = autoregressive(PROMPTS, plain, GREEDY, stop, SEEDS).texts
    require_all_equal(target, GREEDY, expected)
    warm, reference = SamplingParams(temperature=1.5), TransformersGenerate("transformers")
    assert reference.generate(PROMPTS, target, warm, stop, 3)[0] == reference.generate(PROMPTS, plain, warm, stop, 3)[0]
    named = not_used(target.model.generation_config, GREEDY)
    assert named == {"temperature": 0.2, "top_k": 3, "repetition_penalty": 3.0, "typical_p": 0.2}
    GREEDY.say_not_followed(plain.model)  # no warning
    with pytest.warns(UserWarning, match="any method: temperature=0.2, top_k=3, repetition_penalty=3.0, typical_p=0.2"):
        GREEDY.say_not_followed(target.model)


@pytest.mark.parametrize("drafter", [NgramLM(2, 0.7, [2, 1]), DraftModel("tiny", [1, 1, 1])], ids=["ngram_lm", "chain"])
def test_sampled_text_of_a_row_is_what_it_would_be_alone(drafter: Drafter) -> None:
    target = load_tiny(device="cpu")
    sampling = SamplingParams(temperature=0.9, min_p=0.02, processors=(Grammar(), NoRepeatNGramLogitsProcessor(2)))
    parts = (drafter, TreeAttention(target), Exact(), sampling, StopRule(NEW, target.eos))
    together = speculative(PROMPTS, *parts, SEEDS).texts
    assert together == [speculative([p], *parts, [s]).texts[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    for text in together:
        assert all(token % 2 == number % 2 for number, token in enumerate(text))


def test_processors_that_cannot_follow_a_tree_get_one_line() -> None:
    target, stop = load_tiny(device="cpu"), StopRule(4)
    for processor, message in (
        (Dice(), "generation.processors: expected processors whose results depend on the tokens before and on the "
                 "scores of one call, got Dice, which draw random numbers or remember scores; leave them out"),
        (Dead(), "generation.processors: expected a token that may follow, got none after 6 tokens (Dead)"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            autoregressive(PROMPTS[:1], target, SamplingParams(processors=(processor,)), stop, SEEDS[:1])
        assert str(error.value).startswith(message)
    with pytest.raises(InputError, match=r"Strict, which failed after 2 tokens \(no such state\)"):
        autoregressive([[1, 250]], target, SamplingParams(processors=(Strict(),)), stop, SEEDS[:1])
    target.model.generation_config.no_repeat_ngram_size = -3
    target.model.generation_config.suppress_tokens = "these"
    with pytest.raises(InputError, match="the target's generation config: expected values that transformers takes"):
        autoregressive(PROMPTS[:1], target, GREEDY, stop, SEEDS[:1])
