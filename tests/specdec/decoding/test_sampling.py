"""Probabilities are those of `transformers`; draws are reproducible, independent and never impossible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

from specdec.decoding.sampling import SamplingParams, Streams, UniformDraws
from specdec.errors import InputError
from tests.support.families import build

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=1.3),
    ],
)
def test_probabilities_equal_those_of_generate(params: SamplingParams) -> None:
    model = build("llama")
    assert isinstance(model, GenerationMixin)
    config = GenerationConfig(
        do_sample=True,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        repetition_penalty=params.repetition_penalty,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
    )
    ids = torch.tensor([[3, 5, 8, 5, 3, 9]])
    scores = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).scores[0]
    logits = model(ids).logits[:, -1]
    torch.testing.assert_close(params.probabilities(logits, ids.tolist()), scores.softmax(-1))


def test_greedy_is_one_hot_after_the_penalties() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9]])
    assert SamplingParams().probabilities(logits).tolist() == [[0, 1, 0]]
    assert SamplingParams(repetition_penalty=2.0).probabilities(logits, [[1]]).tolist() == [[0, 0, 1]]


def test_low_precision_logits_are_widened() -> None:
    probs = SamplingParams(temperature=1.0).probabilities(torch.randn(2, 50, dtype=torch.bfloat16))
    assert probs.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "generation.temperature: expected a number >= 0, got -0.1; use 0 for greedy decoding"),
        ({"top_p": 0.0}, "generation.top_p: expected a number in (0, 1], got 0.0; use 1.0 to keep every token"),
        ({"top_p": 1.5}, "generation.top_p: expected a number in (0, 1], got 1.5; use 1.0 to keep every token"),
        ({"top_k": -1}, "generation.top_k: expected an integer >= 0, got -1; use 0 to keep every token"),
        ({"repetition_penalty": 0.0}, "generation.repetition_penalty: expected a number > 0, got 0.0"),
    ],
)
def test_values_out_of_range_are_named(values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        SamplingParams(**values)
    assert str(error.value).startswith(message)


def test_categorical_is_the_inverse_cdf_and_skips_impossible_tokens() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])

    def token(u: float) -> int:
        return int(UniformDraws(torch.tensor([[u]], dtype=torch.float64)).categorical(probs, 0))

    assert [token(u) for u in (0.0, 0.2499, 0.25, 0.5, np.nextafter(1, 0))] == [1, 1, 3, 3, 3]


def test_a_row_draws_the_same_alone_and_in_a_batch_and_whatever_the_tree_size() -> None:
    params = SamplingParams(temperature=1.0)
    both = Streams([[1, 2], [3, 4]], params, CPU).draws([10, 20], Streams.ACCEPT, 9).uniforms
    alone = Streams([[3, 4]], params, CPU).draws([20], Streams.ACCEPT, 5).uniforms
    assert torch.equal(both[1:, :5], alone)


def test_streams_differ_by_seed_phase_and_position() -> None:
    params = SamplingParams(temperature=1.0)
    draws = [
        Streams([seed], params, CPU).draws([length], phase, 3).uniforms
        for seed, length, phase in (([0], 5, 0), ([1], 5, 0), ([0], 6, 0), ([0], 5, 1))
    ]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4
