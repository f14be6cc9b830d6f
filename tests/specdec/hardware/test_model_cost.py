"""Costs from configs, against counts by hand, model cards, loaded weights, and PyTorch's counter of operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTBigCodeConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from specdec.errors import InputError
from specdec.hardware import ModelShape, Roofline, load_config
from specdec.hardware.model_cost import Attention, Experts
from specdec.measure.profiling import Footprint
from specdec.model.cache import cache_argument
from specdec.model.target import TargetModel
from tests.specdec.hardware.made import SLOW, dense, mixture, shape

CARDS = {  # parameters, as the hub counts them in the published weights
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "mixtral_8x7b": 46_702_792_704,
}


@pytest.mark.parametrize(("name", "parameters"), CARDS.items())
def test_kept_configs_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert ModelShape.of(load_config(name), name).elements == parameters


def test_a_dense_model_by_hand() -> None:
    made = shape(dense())
    assert made.dense == 2 * (4 * 8 * 8 + 3 * 8 * 16)
    assert made.features == 2 * (4 * 16 + 3 * 24)
    assert (made.output, made.looked_up, made.vectors) == (80, 80, 5 * 8)
    assert made.attention == (Attention(layers=2, query_heads=2, kv_heads=2, key=4, value=4),)
    assert made.kv_elements == 2 * 2 * 8
    assert made.experts is None


def test_tied_embeddings_are_one_matrix() -> None:
    made = shape(dense(tie_word_embeddings=True))
    assert (made.output, made.looked_up) == (80, 0)


def test_grouped_and_multi_query_attention_by_hand() -> None:
    made = shape(dense(heads=4, kv_heads=1))
    assert made.dense == 2 * (2 * 8 * 8 + 2 * 8 * 2 + 3 * 8 * 16)
    assert made.kv_elements == 2 * 1 * 4
    assert shape(GPTBigCodeConfig(n_embd=16, n_head=4, n_layer=1)).attention[0].kv_heads == 1
    assert shape(GPT2Config(n_embd=16, n_head=4, n_layer=3)).kv_elements == 3 * 4 * 8


def test_a_mixture_of_experts_by_hand() -> None:
    made = shape(mixture())
    assert made.dense == 8 * 8 + 2 * 8 * 4 + 8 * 8 + 4 * 8  # q, k and v, o, router
    assert made.experts == Experts(layers=1, count=4, per_token=2, elements=3 * 8 * 16, features=(8 + 32) + (16 + 8))
    assert made.elements == made.dense + 4 * 384 + 80 + 80 + 3 * 8
    assert made.experts.touched(1) == 2  # a token's own two
    assert made.experts.touched(3) == 4 * (1 - 0.5**3)


def test_layers_with_a_window_are_told_from_those_without() -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    made = shape(Gemma2Config(**sizes, vocab_size=10, num_hidden_layers=3, sliding_window=16))
    assert {(a.layers, a.window) for a in made.attention} == {(2, 16), (1, None)}
    made = shape(MistralConfig(**sizes, vocab_size=10, num_hidden_layers=3, sliding_window=16))
    assert [(a.layers, a.window) for a in made.attention] == [(3, 16)]


def test_a_loaded_model_says_the_same(tiny: TargetModel) -> None:
    made, loaded = ModelShape.of(load_config("tiny"), "tiny"), Footprint.of(tiny)
    assert 4 * (made.dense + made.output + made.vectors) == loaded.weight_bytes
    assert made.dense + made.output == loaded.matrix_elements
    assert 4 * made.kv_elements == loaded.kv_bytes
    (attention,) = made.attention
    assert 2 * attention.layers * attention.query_heads * (attention.key + attention.value) == loaded.attention_flops


@pytest.mark.parametrize(
    "config",
    [
        dense(hidden_size=32),
        dense(heads=8, kv_heads=2, hidden_size=32, tie_word_embeddings=True),
        mixture(),
        Qwen2Config(
            vocab_size=10,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    ],
    ids=["dense", "grouped and tied", "mixture", "biases"],
)
@pytest.mark.parametrize(("tokens", "batch", "context"), [(1, 1, 0), (5, 2, 0), (3, 2, 7)])
def test_operations_are_those_that_pytorch_counts(
    config: PreTrainedConfig, tokens: int, batch: int, context: int
) -> None:
    # the counter knows plain products, and no grouped ones
    plain = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if shape(config).experts else {})
    model = AutoModelForCausalLM.from_config(config, **plain).eval()
    with torch.inference_mode():
        name = cache_argument(model)
        cache = model(torch.zeros(batch, context, dtype=torch.long))[name] if context else None
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(batch, tokens, dtype=torch.long), use_cache=True, **{name: cache})
    predicted = Roofline(shape(config), SLOW).forward(tokens, batch, context).flops
    assert predicted == counter.get_total_flops()


def test_what_is_not_counted_is_refused() -> None:
    with pytest.raises(
        InputError, match="expected layers of full_attention or sliding_attention, got latent attention"
    ):
        shape(DeepseekV3Config())
    with pytest.raises(InputError, match="expected a number of parameters >= 1, got 0"):
        ModelShape.of_heads(0, shape(dense()))


@pytest.mark.parametrize(("name", "message"), [("llama2_7", "did you mean llama2_7b?"), ("gone/", "got 'gone/'")])
def test_configs_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(InputError, match="target: expected") as error:
        load_config(name)
    assert message in str(error.value)


def test_a_kept_config_is_found_by_its_hub_id() -> None:
    assert load_config("meta-llama/Llama-2-7b-hf").hidden_size == 4096
