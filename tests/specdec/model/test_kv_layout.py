"""A model that cannot forget the rejected branches of a tree is refused in one line."""

from __future__ import annotations

import copy
from inspect import signature

import pytest
import torch

from experiments.families.family_check import NEW, differences, generated, random_prompts
from experiments.families.tiny_models import tiny_model
from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.target import TargetModel

KEEPS = (
    "target: expected a model that keeps keys and values of every token, so that the rejected branches of a tree can "
    "be forgotten, got {}; choose a model with attention in every layer"
)
MIXED = "it keeps a recurrent or compressed state, into which tokens are mixed"
REFUSED = {
    "mamba": KEEPS.format(f"MambaForCausalLM: {MIXED}"),
    "mamba2": KEEPS.format(f"Mamba2ForCausalLM: {MIXED}"),
    "rwkv": KEEPS.format(f"RwkvForCausalLM: {MIXED}"),
    "recurrent_gemma": KEEPS.format(f"RecurrentGemmaForCausalLM: {MIXED}"),
    "deepseek_v4": KEEPS.format(f"DeepseekV4ForCausalLM: {MIXED}"),
    "falcon_h1": KEEPS.format(
        "FalconH1ForCausalLM: its layers keep a recurrent state, into which every token is mixed"
    ),
    "jamba": KEEPS.format(
        "JambaForCausalLM: 2 of its 3 layers keep a recurrent state, into which every token is mixed"
    ),
    "qwen3_next": KEEPS.format(
        "Qwen3NextForCausalLM: 2 of its 3 layers keep a recurrent state, into which every token is mixed"
    ),
    "deepseek_v32": KEEPS.format(
        "DeepseekV32ForCausalLM: its layers keep the keys of an indexer beside keys and values, which cannot forget a "
        "tree's branches"
    ),
    "bart": "target: expected a model that takes `position_ids`, so that nodes of a tree at one depth share a "
    "position, got BartForCausalLM, which counts positions by the length of its cache; choose another model",
    "moshi": "target: expected a model that transformers runs alike with a KV cache and without, got MoshiForCausalLM, "
    "whose results part behind its window (1e+00 of their spread); choose another model; docs/models.md lists the "
    "families that work",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("runtime", ["auto", "stock"])
def test_what_cannot_serve_a_tree_is_refused_in_one_line(family: str, runtime: str) -> None:
    with pytest.raises(InputError) as error:
        TargetModel(tiny_model(family), name=family, runtime=runtime)
    assert str(error.value) == REFUSED[family]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_gives_all_logits_gives_those_that_are_asked_for() -> None:
    """Whisper's decoder takes no `logits_to_keep`: the nodes' logits are taken from all of them."""
    model, prompts = tiny_model("whisper"), random_prompts([9, 20, 4])
    assert "logits_to_keep" not in signature(model.forward).parameters
    expected = [generated(copy.deepcopy(model), prompt, NEW) for prompt in prompts]
    target = TargetModel(model, name="whisper")
    cache, order = target.new_cache(1, 8), torch.tensor([[2, 0]])
    tokens = torch.tensor([[5, 6, 7]])
    every = target.forward(cache, Block.chain(cache, tokens)).logits
    assert torch.equal(target.forward(cache, Block.chain(cache, tokens, order)).logits, every[:, [2, 0]])
    assert differences(target, prompts, expected, NEW) == []
