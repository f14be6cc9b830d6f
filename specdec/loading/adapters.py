"""PEFT adapters: read beside a base model and merged into its weights, so that every path runs the result as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from specdec.errors import InputError
from specdec.loading.faults import faults, first_line
from specdec.loading.keys import listed


def base_of(name: str, hub: Mapping[str, Any], option: str) -> str | None:
    """The base model that an adapter names; None if `name` holds a model of its own.

    Raises:
        InputError: an adapter that names no base model.
    """
    from peft import PeftConfig

    with faults(name, option):
        if find_adapter_config_file(name, revision=hub.get("revision")) is None:
            return None
        base = PeftConfig.from_pretrained(name, revision=hub.get("revision")).base_model_name_or_path
    if not base:
        target = option.partition(".")[0]
        raise InputError(
            option, expected="an adapter that names its base model", got=f"{name!r}, which names none",
            fix=f"pass the base model as {option} and the adapter as {target}.adapter",
        )  # fmt: skip
    return str(base)


def merge_adapter(model: PreTrainedModel, adapter: str, option: str) -> PreTrainedModel:
    """Add the adapter to the weights (LoRA and its kin).

    Raises:
        InputError: no adapter there; one that cannot be merged (prompts, prefixes), that was trained for another
            model, or whose file does not hold all of it.
    """
    from peft import PeftConfig, get_peft_model

    with faults(adapter, option):
        config = PeftConfig.from_pretrained(adapter)
    if config.is_prompt_learning:
        raise InputError(
            option, expected="an adapter that can be merged into the weights (LoRA and the like)",
            got=f"{adapter!r}, a {config.peft_type.value} adapter", fix="choose another, or train one with LoRA",
        )  # fmt: skip
    try:
        config.inference_mode = True
        joined: Any = get_peft_model(model, config)
        result = joined.load_adapter(adapter, "default", is_trainable=False)
        left = [*result.missing_keys], [*result.unexpected_keys]
    except (RuntimeError, ValueError, KeyError, OSError, AttributeError) as error:
        raise _other_model(model, adapter, option, first_line(error)) from error
    if any(left):
        lacks, extra = (listed(keys) for keys in left)
        raise _other_model(model, adapter, option, f"lacks {lacks}" if lacks else f"also has {extra}")
    merged: PreTrainedModel = joined.merge_and_unload(safe_merge=False)
    return merged


def _other_model(model: PreTrainedModel, adapter: str, option: str, why: str) -> InputError:
    expected = f"a whole adapter of this {type(model).__name__}"
    fix = "take the base model that its adapter_config.json names, or download it again"
    return InputError(option, expected=expected, got=f"{adapter!r} ({why})", fix=fix)
