"""Checkpoints that are not whole, or not plain: each loads as `transformers` runs it, or is refused with one line."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DeepseekV3Config

from experiments.sweeps.launch import launch
from specdec.errors import InputError
from specdec.model.load import byte_tokenizer, load
from specdec.model.loading.pretrained import read_model

VOCAB = len(byte_tokenizer())
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 257,
    "pad_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with separate embeddings."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SIZES)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def edited(whole: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of it, its tensors or its config edited."""

    def edit(tensors: Callable[[State], State] | None = None, source: Path = whole, **config: Any) -> str:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        if tensors is not None:
            file = folder / "model.safetensors"
            save_file(tensors(load_file(file)), file, metadata={"format": "pt"})
        known = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**known, **config}), "utf-8")
        return str(folder)

    return edit


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load(name, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def logits(name: str, **options: Any) -> Tensor:
    target = load(name, **options)
    return target.prefill(target.new_cache(1, 4), [[1, 2, 3]]).logits


def without(*parts: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if not any(part in key for part in parts)}


def test_missing_weights_are_named(edited: Callable[..., str]) -> None:
    assert "expected a checkpoint with every weight of LlamaForCausalLM, got" in (
        line := refusal(edited(without("lm_head")))
    )
    assert "which lacks lm_head.weight; set tie_word_embeddings to true in config.json if" in line
    line = refusal(edited(without("layers.1.mlp.down")))
    assert "which lacks model.layers.1.mlp.down_proj.weight; mend config.json" in line
    line = refusal(edited(num_hidden_layers=4))
    assert "which lacks model.layers.*.input_layernorm.weight (2), model.layers.*.mlp.down_proj.weight (2), " in line
    line = refusal(edited(lambda state: {f"module.{key}": value for key, value in state.items()}))
    assert (
        "(the file has instead module.lm_head.weight, module.model.embed_tokens.weight, module.model.layers.*." in line
    )
    assert "lacks lm_head.weight, model.embed_tokens.weight" in refusal(
        edited(without("lm_head", "embed"), tie_word_embeddings=True)
    )


def test_tied_weights_are_not_missing(edited: Callable[..., str], whole: Path) -> None:
    tied = edited(without("lm_head"), tie_word_embeddings=True)
    assert not torch.equal(logits(tied), logits(str(whole)))
    with pytest.warns(UserWarning, match=r"config.json ties input and output embeddings, but two are stored: both are"):
        assert torch.equal(logits(edited(tie_word_embeddings=True)), logits(str(whole)))


def test_weights_of_another_shape_are_named(edited: Callable[..., str]) -> None:
    line = refusal(edited(vocab_size=VOCAB + 10))
    assert "whose lm_head.weight and 1 more has the shape [258, 32] where the config gives [268, 32]; mend the" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(edited: Callable[..., str], value: float) -> None:
    def spoil(state: State) -> State:
        state["model.layers.1.mlp.down_proj.weight"][3, 4] = value
        return state

    line = refusal(edited(spoil))
    assert "expected finite weights, got" in line
    assert "whose model.layers.1.mlp.down_proj.weight holds NaN or infinity" in line


def test_unused_weights_are_named_with_what_they_are(edited: Callable[..., str], whole: Path) -> None:
    extra = {
        "medusa_head.0.0.linear.weight": "Medusa heads, which drafter=medusa drafter.heads={} reads (1 tensors)",
        "model.layers.2.eh_proj.weight": "modules that predict several tokens (MTP) (1 tensors)",
        "model.layers.2.mlp.up_proj.weight": "modules that predict several tokens (MTP) (2 tensors)",
        "mtp.fc.weight": "modules that predict several tokens (MTP) (3 tensors)",
        "model.layers.3.mlp.up_proj.weight": "layers past num_hidden_layers=2 (1 tensors)",
        "vision_tower.patch.weight": "parts for images or sound (1 tensors)",
        "model.layers.0.self_attn.k_scale": "scales of a quantised KV cache (1 tensors)",
        "score.weight": "a head for another task (1 tensors)",
        "surprise.weight": "unknown tensors: surprise.weight",
    }
    name = edited(lambda state: {**state, **{key: torch.ones(1) for key in extra}})
    with pytest.warns(UserWarning, match="not used: ") as said:
        assert torch.equal(logits(name), logits(str(whole)))
    (line,) = [str(warning.message) for warning in said if "not used" in str(warning.message)]
    for kind in ("Medusa", "(MTP) (3", "past num", "images", "KV", "another", "unknown"):
        assert next(text for text in extra.values() if kind in text).format(name) in line


def test_modules_that_a_class_passes_over_are_named_too(tmp_path: Path) -> None:
    """DeepSeek-V3 keeps its MTP module as layer 61, which its class ignores."""
    config = DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4, "head_dim": None},
        moe_intermediate_size=16, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, first_k_dense_replace=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.layers.61.enorm.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"not used: modules that predict several tokens \(MTP\) \(1 tensors\)"):
        read_model(str(tmp_path), torch.float32, {"revision": None, "trust_remote_code": False})


def test_torn_files_and_pointers_are_named(edited: Callable[..., str]) -> None:
    def written(file: str, content: bytes | None) -> str:
        name = edited()
        path = Path(name) / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
        return refusal(name)

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for file in ("model.safetensors", "tokenizer.json"):
        line = written(file, pointer)
        assert f"expected whole files, got {line.split('got ')[1].split(',')[0]}, whose {file} is a git LFS" in line
        assert "download it again (with `git lfs pull` in a git clone)" in line
    assert "whose model.safetensors is torn or truncated" in written("model.safetensors", None)
    assert "whose config.json is no valid JSON" in written("config.json", b'{"model_type": "llama",')
    assert "whose tokenizer.json is no valid JSON" in written("tokenizer.json", b"{")
    assert "whose generation_config.json is no valid JSON" in written("generation_config.json", b"[")


def test_a_pickle_that_would_run_code_is_refused_without_advice_to_let_it(edited: Callable[..., str]) -> None:
    name = edited()
    (Path(name) / "model.safetensors").unlink()
    torch.save({"weight": os.system}, Path(name) / "pytorch_model.bin")
    assert refusal(name) == (
        f"target.name: expected weights as tensors alone, got {name!r}, whose weights are a pickle that holds more "
        "than tensors and could run code; take a checkpoint in safetensors"
    )


def test_missing_files_are_named(edited: Callable[..., str], whole: Path) -> None:
    name = edited()
    (Path(name) / "model.safetensors").unlink()
    assert "download the weights (model.safetensors, or all of its parts)" in refusal(name)
    name = edited()
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(Path(name) / "model.safetensors"), "gone.safetensors"),
    }
    (Path(name) / "model.safetensors").unlink()
    (Path(name) / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert refusal(name).endswith("gone.safetensors); download the missing file")
    name = edited()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (Path(name) / file).unlink(missing_ok=True)
    line = refusal(name)
    assert "tokenizer" in line
    assert "target.tokenizer=FOLDER or a hub id" in line
    target = load(name, tokenizer=str(whole))
    assert target.tokenizer is not None
    assert len(target.tokenizer) == VOCAB


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "aqlm"])
def test_quantised_checkpoints_say_what_to_take_instead(edited: Callable[..., str], method: str) -> None:
    config = {"quant_method": method, "bits": 4, "group_size": 16, "load_in_4bit": True, "config_groups": {}}
    line = refusal(edited(quantization_config=config))
    assert f"quantised by {method} (" in line
    assert line.endswith("take the checkpoint that is not quantised and pass target.storage=int8 or int4")


def test_scales_without_a_config_are_refused(edited: Callable[..., str]) -> None:
    name = edited(lambda state: {**state, "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)})
    assert "with model.layers.0.mlp.up_proj.weight_scale and no such entry; download config.json again" in refusal(name)


def test_eight_bit_floats_are_read_as_the_dtype_asked_for(edited: Callable[..., str], whole: Path) -> None:
    """On a machine whose GPU does not multiply them, `transformers` multiplies the scales in."""

    def blocks(state: State) -> State:
        packed = {}
        for key, weight in state.items():
            if "_proj" in key:
                packed[key] = weight.mul(2).to(torch.float8_e4m3fn)
                packed[f"{key}_scale_inv"] = torch.full((-(-weight.shape[0] // 16), -(-weight.shape[1] // 16)), 0.5)
            else:
                packed[key] = weight
        return packed

    def rounded(key: str, weight: Tensor) -> Tensor:
        return weight.mul(2).to(torch.float8_e4m3fn).float() / 2 if "_proj" in key else weight

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    name = edited(blocks, quantization_config=config)
    with pytest.warns(UserWarning, match="its weights are quantised by fp8 and read as float32"):
        ours = logits(name, device="cpu")
    theirs = logits(edited(lambda state: {key: rounded(key, weight) for key, weight in state.items()}))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.std()
    assert "weights" in refusal(edited(lambda state: without("scale_inv")(blocks(state)), quantization_config=config))


def test_architectures_that_are_no_causal_lm(edited: Callable[..., str]) -> None:
    assert "expected a causal language model, got" in (line := refusal(edited(model_type="t5")))
    assert "a t5 model (an encoder with a decoder); choose a decoder-only model" in line
    assert "update transformers" in refusal(edited(model_type="of_tomorrow"))
    remote = edited(model_type="homemade", auto_map={"AutoConfig": "conf.C", "AutoModelForCausalLM": "mod.M"})
    assert "pass target.trust_remote_code=true" in refusal(remote)
    line = refusal(edited(num_attention_heads=5))
    assert "hidden size (32) is not a multiple of the number of attention heads (5)" in line


def test_a_checkpoint_without_eos_says_where_texts_end(edited: Callable[..., str]) -> None:
    name = edited(eos_token_id=None)
    (Path(name) / "generation_config.json").unlink()
    with pytest.warns(
        UserWarning, match=r"names no EOS token \(its tokenizer's is '<\|im_end\|>', id 257\): texts end"
    ):
        assert load(name).eos == frozenset()


def test_eos_ids_are_numbers_that_the_model_can_give(edited: Callable[..., str]) -> None:
    for ids in ("</s>", ["</s>"], 2.0, True):
        name = edited()
        file = Path(name) / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": ids}), "utf-8")
        assert refusal(name) == (
            f"target.name: expected whole numbers as EOS token ids, got {name!r}, whose generation_config.json says "
            f"{ids!r}; mend eos_token_id in generation_config.json"
        )
    file.write_text(json.dumps({"eos_token_id": [257, 99999]}), "utf-8")
    with pytest.warns(UserWarning, match=r"names the EOS id 99999, which is none of its 258 tokens and ends no text"):
        load(name)


def test_old_rope_settings_are_read(edited: Callable[..., str], whole: Path) -> None:
    scaling = {"type": "linear", "factor": 4.0}
    target = load(edited(rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling))
    assert target.model.config.rope_parameters["rope_type"] == "linear"
    assert not torch.equal(logits(target.name), logits(str(whole)))


def test_entry_points_show_a_warning_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    launch(lambda: None)
    assert warnings.formatwarning("not used: x", UserWarning, "file.py", 3) == "warning: not used: x\n"
