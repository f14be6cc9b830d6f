"""Frequencies that depend on a text's length are chosen by that text alone, and give the text of `generate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedModel

from experiments.families.family_check import differences, generated, plain, random_prompts
from specdec.errors import InputError
from specdec.model.target import TargetModel
from tests.support.families import build

SWITCH, NEW = 20, 8
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": SWITCH}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def longrope() -> PreTrainedModel:
    return build("phi3", original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE)


@pytest.mark.parametrize("runtime", ["auto", "stock"])
def test_longrope_texts_are_those_of_generate_on_either_side(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """Long prompts are read in chunks, rows on both sides share a batch, drafts change nothing."""
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 7)
    model, prompts = longrope(), random_prompts([30, 9, 21])
    expected = [generated(model, prompt, NEW) for prompt in prompts]
    target = TargetModel(copy.deepcopy(model), name="phi3", runtime=runtime)
    assert differences(target, prompts, expected, NEW) == []


@pytest.mark.parametrize(
    ("family", "rope"), [("phi3", LONGROPE), ("mistral", DYNAMIC)], ids=["phi3 longrope", "mistral dynamic"]
)
def test_windows_and_ropes_that_switch_go_together(family: str, rope: dict[str, Any]) -> None:
    """The twin that tries the window reads more tokens than such a rope serves: its own must not switch."""
    lengths = {"original_max_position_embeddings": SWITCH} if family == "phi3" else {"max_position_embeddings": SWITCH}
    model, prompts = build(family, sliding_window=6, rope_parameters=rope, **lengths), random_prompts([30, 9])
    expected = [generated(copy.deepcopy(model), prompt, NEW) for prompt in prompts]
    target = TargetModel(copy.deepcopy(model), name=family)
    assert target.proof is not None
    assert any("small twin" in stage for stage in target.proof.differences)
    assert differences(target, prompts, expected, NEW) == []


def test_a_text_that_would_cross_the_switch_is_refused() -> None:
    target = TargetModel(longrope(), name="phi3")
    plain(target, random_prompts([SWITCH - NEW + 1]), NEW)  # its last token is never read
    with pytest.raises(InputError) as error:
        plain(target, random_prompts([30, 15]), NEW)
    assert str(error.value) == (
        "prompt: expected prompt and new tokens on one side of 20 tokens, where the rotary factors of phi3 switch "
        "(longrope) and its whole text would have to be read again, got 15 + 8; lower generation.max_new_tokens to 6 "
        "or lengthen the prompt"
    )


def test_dynamic_scaling_follows_each_text() -> None:
    model = build("llama", max_position_embeddings=SWITCH, rope_parameters=DYNAMIC)
    prompts = random_prompts([30, 9, 17])  # the last one crosses
    expected = [generated(copy.deepcopy(model), prompt, NEW) for prompt in prompts]  # its rope remembers longer texts
    target = TargetModel(copy.deepcopy(model), name="llama")
    assert target.context_window == 4 * SWITCH
    assert differences(target, prompts, expected, NEW) == []


@pytest.mark.parametrize(
    ("rope", "window"),
    [
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "default", "rope_theta": 1e4}, 128),
    ],
    ids=["a card's", "already in the config", "none"],
)
def test_yarn_stretches_the_window(rope: dict[str, Any], window: int) -> None:
    assert TargetModel(build("llama", rope_parameters=rope), name="llama").context_window == window
