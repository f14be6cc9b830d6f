"""PEFT adapters are merged into the model; of checkpoints with images the text model is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.load import byte_tokenizer, load
from tests.specdec.model.loading.test_checkpoints import SIZES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a name that transformers gave up


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


def saved(folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**{**SIZES, **config})).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, **options: Any) -> tuple[str, Tensor]:
    """An adapter whose weights are far from nothing, and the logits it gives beside the base model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    joined = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, weight in joined.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    joined.save_pretrained(folder)
    with torch.inference_mode():
        return str(folder), joined.eval()(torch.tensor([[1, 2, 3]])).logits[:, -1:]


def logits(name: str, **options: Any) -> Tensor:
    target = load(name, **options)
    return target.prefill(target.new_cache(1, 4), [[1, 2, 3]]).logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_merged_adapter_says_what_it_said_beside_the_model(tmp_path: Path, base: Path, options: dict) -> None:
    folder, said = adapter(tmp_path, base, target_modules=["q_proj", "down_proj"], **options)
    merged = load(str(base), adapter=folder)
    assert merged.name == f"{base}+{folder}"
    assert torch.allclose(merged.prefill(merged.new_cache(1, 4), [[1, 2, 3]]).logits, said, atol=1e-4)
    assert not torch.allclose(logits(str(base)), said, atol=1e-2)
    byte_tokenizer().save_pretrained(folder)
    assert torch.allclose(logits(folder), said, atol=1e-4)  # the folder names its base model


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, base: Path) -> None:
    def refusal(folder: str, model: Path = base) -> str:
        with pytest.raises(InputError) as error:
            load(str(model), adapter=folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    folder, _ = adapter(tmp_path / "a", base, target_modules=["q_proj"])
    other = saved(tmp_path / "other", hidden_size=64)
    assert "target.adapter: expected a whole adapter of this LlamaForCausalLM, got" in refusal(folder, other)
    file = Path(folder) / "adapter_model.safetensors"
    state = load_file(file)
    save_file({key: value for key, value in state.items() if "layers.1" not in key}, file)
    assert "which lacks base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight, " in refusal(folder)
    save_file({**state, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, file)
    assert "which also has base_model.model.model.layers.7." in refusal(folder)
    file.write_bytes(file.read_bytes()[:100])
    assert "whose adapter_model.safetensors is torn or truncated" in refusal(folder)
    assert "target.adapter: " in refusal(str(tmp_path / "nowhere"))


def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path, base: Path) -> None:
    tied = saved(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.warns(UserWarning):  # noqa: PT030  (peft warns of several things, of this one too)
        folder, _ = adapter(tmp_path / "a", tied, target_modules=["lm_head"])
    with pytest.raises(InputError, match="merged, it says something else than beside the weights"):
        load(str(tied), adapter=folder)
    prompts = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    prompts.save_pretrained(tmp_path / "p")
    with pytest.raises(
        InputError, match=r"can be merged into the weights \(LoRA and the like\), got .*, a PROMPT_TUNING"
    ):
        load(str(base), adapter=str(tmp_path / "p"))


TEXT = {**SIZES, "initializer_range": 0.1}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32}


def with_images(kind: str) -> Any:
    if kind == "llava":
        text, vision = CONFIG_MAPPING["llama"](**TEXT), CONFIG_MAPPING["clip_vision_model"](**VISION, projection_dim=32)
        return CONFIG_MAPPING["llava"](text_config=text, vision_config=vision, image_token_index=5)
    if kind == "gemma3":
        text, vision = CONFIG_MAPPING["gemma3_text"](**TEXT), {**VISION, "model_type": "siglip_vision_model"}
        images = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "eos_token_id": 257}
        return CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision, **images)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    return CONFIG_MAPPING["qwen2_5_vl"](
        text_config={**TEXT, "rope_parameters": rope}, vision_config=QWEN_VISION, image_token_id=5, video_token_id=6,
        vision_start_token_id=7, vision_end_token_id=8, eos_token_id=257,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("llava", "of LlavaForConditionalGeneration the text model LlamaForCausalLM is used alone"),
        ("gemma3", "of Gemma3ForConditionalGeneration the text model Gemma3ForCausalLM is used alone"),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration is given text alone, no images"),
    ],
)
def test_text_of_a_model_of_text_and_images(tmp_path: Path, kind: str, line: str) -> None:
    torch.manual_seed(1)
    model: Any = AutoModelForImageTextToText.from_config(with_images(kind)).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=line):
        target = load(str(tmp_path))
    prompt = [65, 66, 67, 68]
    ours = autoregressive([prompt], target, SamplingParams(), StopRule(8, target.eos), [[0]]).texts[0]
    with torch.inference_mode():
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert ours == theirs
