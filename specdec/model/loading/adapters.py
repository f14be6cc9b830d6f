"""PEFT adapters: read for a base model and merged into its weights, so that every path runs the result unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from specdec.errors import InputError
from specdec.extras import require_extra
from specdec.model.loading.faults import faults
from specdec.model.loading.keys import listed

# Largest change of the logits by rounding the merged weights to their dtype, as a share of the logits' spread.
MERGED_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}


def base_of(name: str, hub: Mapping[str, Any], option: str) -> str | None:
    """Return the base model that an adapter names; None if `name` holds a model of its own.

    Raises:
        InputError: an adapter that names no base model.
    """
    with faults(name, option):
        if find_adapter_config_file(name, revision=hub.get("revision")) is None:
            return None
    require_extra("peft", option)
    from peft import PeftConfig

    with faults(name, option):
        base = PeftConfig.from_pretrained(name, revision=hub.get("revision")).base_model_name_or_path
    if not base:
        target = option.partition(".")[0]
        raise InputError(
            option, expected="an adapter that names its base model", got=f"{name!r}, which names none",
            fix=f"pass the base model as {option} and the adapter as {target}.adapter",
        )  # fmt: skip
    return str(base)


def merge_adapter(model: PreTrainedModel, adapter: str, option: str) -> PreTrainedModel:
    """Merge an adapter (LoRA and similar kinds) into the weights.

    Raises:
        InputError: no such adapter; one that cannot be merged (prompts, prefixes), that was trained for another model,
            or whose file is incomplete.
    """
    require_extra("peft", option)
    from peft import PeftConfig, get_peft_model

    with faults(adapter, option):
        config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise InputError(
            option, expected="an adapter that can be merged into the weights (LoRA and the like)",
            got=f"{adapter!r}, a {config.peft_type.value} adapter", fix="choose another, or train one with LoRA",
        )  # fmt: skip
    config.inference_mode = True
    expected = f"a whole adapter of this {type(model).__name__}"
    fix = "take the base model that its adapter_config.json names, or download it again"
    with faults(adapter, option, expected=expected, fix=fix), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names in transformers; real faults are checked below
        joined: Any = get_peft_model(model, config)
        result = joined.load_adapter(adapter, "default", is_trainable=False)
    for keys, verb in ((result.missing_keys, "lacks"), (result.unexpected_keys, "also has")):
        if keys:
            raise InputError(option, expected=expected, got=f"{adapter!r}, which {verb} {listed(keys)}", fix=fix)
    beside = _says(joined)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tied embeddings; whether they matter is measured below
        merged: PreTrainedModel = joined.merge_and_unload()
    apart = float((_says(merged) - beside).abs().max() / beside.std())
    if not apart <= MERGED_TOLERANCE[merged.dtype]:
        why = f"merged, it says something else than beside the weights, {apart:.0e} of their spread"
        raise InputError(
            option, expected="an adapter that can be merged into the weights", got=f"{adapter!r} ({why})",
            fix="untie input and output embeddings before training it, or leave both out of its target_modules",
        )  # fmt: skip
    return merged


@torch.inference_mode()
def _says(model: Any) -> Tensor:
    """Return the logits after a few tokens."""
    ids = torch.arange(1, 5, device=model.device)[None] % model.config.get_text_config().vocab_size
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.double()
