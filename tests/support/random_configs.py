"""Random configs of families that work, and the comparison of their greedy texts with those of `model.generate`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from hypothesis import assume
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from experiments.families.family_check import differences, random_prompts
from experiments.families.tiny_models import HIDDEN, tiny_model
from specdec.model.target import TargetModel

ROPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "qwen2", "qwen3", "mistral", "starcoder2", "granite", "olmo2", "cohere")},
    **{name: {} for name in ("gemma2", "gpt_oss", "mixtral", "qwen3_moe", "doge")},
    "opt": {"ropes": ("default",)},  # learned positions
    # they rotate a part of each head, which has too few dimensions for the other two kinds
    **{name: {"ropes": ("default", "linear", "yarn", "llama3")} for name in ("gpt_neox", "glm4")},
    "phi3": {"ropes": ("default", "longrope")},  # the kinds that its config takes
    "deepseek_v3": {"head_dims": [8], "groups": False},  # of its rotary part; every head has keys of its own
}
SWITCH, NEW = 20, 8  # rows on both sides of where the factors of longrope switch; none crosses
LENGTHS = (30, 9, 4)
TIE = 1e-3  # of the spread of the logits: a smaller lead of the best token may be rounding


@dataclass(frozen=True)
class RandomConfig:
    """A family, options of its config, and the seed of the weights."""

    family: str
    options: dict[str, Any]
    seed: int


@st.composite
def random_configs(draw: st.DrawFn, family: str) -> RandomConfig:
    """Heads, groups, windows, rope, biases, scales, experts and tied embeddings, as far as a family knows them."""
    known, special = CONFIG_MAPPING[family]().to_dict(), FAMILIES[family]
    heads = draw(st.sampled_from([2, 4, 8]))
    free = "head_dim" in known and family != "phi3"
    head_dim = draw(st.sampled_from(special.get("head_dims", [4, 8, 16] if free else [HIDDEN // heads])))
    groups = [n for n in (1, 2, 4, 8) if n <= heads] if special.get("groups", True) else [heads]
    options = {
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from(groups)),
        "head_dim": head_dim,
        "num_hidden_layers": draw(st.integers(2, 3)),
        "max_window_layers": 1,
        "sliding_window": draw(st.sampled_from([3, 6, 11, 4096])),
        "num_local_experts": draw(st.integers(2, 5)),
        "num_experts": draw(st.integers(2, 5)),
        "num_experts_per_tok": draw(st.integers(1, 2)),
        "decoder_sparse_step": draw(st.integers(1, 2)),
        **{name: draw(st.booleans()) for name in FLAGS},
        **{name: draw(st.sampled_from(values)) for name, values in SCALES.items()},
        **draw(ropes(special.get("ropes", ROPES), head_dim)),
    }
    own = {name: value for name, value in options.items() if name in known}
    return RandomConfig(family, own, draw(st.integers(0, 99)))


FLAGS = (
    "attention_bias", "mlp_bias", "use_bias", "use_sliding_window", "norm_topk_prob", "tie_word_embeddings",
)  # fmt: skip
SCALES: dict[str, list[Any]] = {
    "attention_multiplier": [0.1, 0.5],
    "residual_multiplier": [0.5, 1.0],
    "embedding_multiplier": [1.0, 3.0],
    "logits_scaling": [1.0, 4.0],
    "query_pre_attn_scalar": [8, 32],
    "attn_logit_softcapping": [5.0, None],
    "final_logit_softcapping": [5.0, None],
}


@st.composite
def ropes(draw: st.DrawFn, kinds: Sequence[str], head_dim: int) -> dict[str, Any]:
    """The options `rope_parameters` and `max_position_embeddings`."""
    kind = draw(st.sampled_from(kinds))
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 10000.0]))}
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        parameters["factor"] = draw(st.sampled_from([2.0, 4.0]))
    if kind in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = SWITCH
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * (head_dim // 2), "long_factor": [4.0] * (head_dim // 2)}
    options: dict[str, Any] = {"rope_parameters": parameters}
    options["max_position_embeddings"] = SWITCH if kind == "dynamic" else 4 * SWITCH
    if kind == "longrope":
        options["original_max_position_embeddings"] = SWITCH
    return options


def wrong_texts(config: RandomConfig) -> list[str]:
    """Which ways of decoding give another text than `generate`; a config with a near tie is passed over."""
    transformers.logging.set_verbosity_error()
    model, prompts = tiny_model(config.family, config.seed, **config.options), random_prompts(list(LENGTHS))
    # a dynamic rope remembers longer texts: each text has a model of its own
    expected = [_generated(copy.deepcopy(model), prompt) for prompt in prompts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TargetModel(model, name=config.family)
    return differences(target, prompts, expected, NEW)


@torch.inference_mode()
def _generated(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    logits = torch.cat(out.logits)
    best, second = logits.topk(2).values.T
    assume(bool((best - second > TIE * logits.std(-1)).all()))
    text: list[int] = out.sequences[0, len(prompt) :].tolist()
    return text
