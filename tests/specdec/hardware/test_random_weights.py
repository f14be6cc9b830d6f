"""Models of random weights in a given shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from experiments.bench import main
from specdec.errors import InputError
from specdec.hardware import random_weights
from specdec.hardware.configs import KEPT, load_config
from specdec.hardware.random_weights import load_random
from specdec.model.target import TargetModel
from tests.support.families import FAMILIES, build

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 300, "head_dim": 8, "num_local_experts": 4}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept configs with their own depth and options, but narrow."""

    def load(name: str) -> PreTrainedConfig:
        config = load_config(name)
        for key, value in SMALL.items():
            if hasattr(config, key):
                setattr(config, key, value)
        return config

    monkeypatch.setattr(random_weights, "load_config", load)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", KEPT)
def test_every_kept_config_becomes_a_target(name: str) -> None:
    target = load_random(name, layers=2, device="cpu", runtime="stock")
    assert target.depth == 2
    assert target.name == f"random {name}"
    assert target.eos == frozenset()
    assert target.tokenizer is not None


def weights(target: TargetModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().float() for weight in target.model.parameters()])


def test_the_seed_decides_and_the_global_one_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (weights(load_random("tiny", seed, device="cpu", runtime="stock")) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_any_dtype(dtype: str) -> None:
    assert load_random("tiny", dtype=dtype, device="cpu", runtime="stock").dtype == getattr(torch, dtype)


def test_a_folder_of_another_family(tmp_path: Path) -> None:
    build("qwen3").config.save_pretrained(tmp_path)
    target = load_random(str(tmp_path), device="cpu", runtime="stock")
    assert target.vocab_size == FAMILIES["qwen3"]["vocab_size"]
    assert target.tokenizer is None  # fewer tokens than bytes


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        ("llama3_8", None, "target: expected one of"),
        ("llama3_8b", 0, "target.layers: expected 1 or more, got 0; use layers=null for all"),
        ("llama3_8b", 33, "target.layers: expected at most the 32 layers of llama3_8b, got 33; use layers=null"),
    ],
)
def test_bad_options_are_named(config: str, layers: int | None, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_random(config, layers=layers, device="cpu")
    assert str(error.value).startswith(message)


def test_what_does_not_fit_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights.psutil, "virtual_memory", type("Free", (), {"available": 2**30}))
    with pytest.raises(InputError, match=r"at most 1.0 GiB .*got llama3_8b with 29.9 GiB in float32"):
        load_random("llama3_8b", device="cpu")


def test_a_config_of_no_causal_lm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}', "utf-8")
    with pytest.raises(InputError, match=r"target.config: expected the config of a causal LM, got .*T5Config"):
        load_random(str(tmp_path), device="cpu")


def test_a_benchmark_runs_on_one(call: Callable[..., tuple]) -> None:
    words = ["target=random", "target.config=tiny", "target.device=cpu", "prompts.limit=1",
             "generation.max_new_tokens=8", "drafter=ngram"]  # fmt: skip
    status, summary, said = call(main, *words)
    assert status == 0, said
    assert summary["target"] == "random tiny"
