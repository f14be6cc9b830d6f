"""A causal LM from a hub id or a folder, with all of its weights: none is filled with random numbers.

checkpoint                          model
a causal LM                         as transformers loads it
an adapter (PEFT)                   its base model with the adapter merged into the weights
text and images, a known text LM    the text LM alone (Llava, Gemma 3, Mistral 3)
text and images, a text LM of       the whole model, which is given text only (Qwen2-VL)
its own
anything else                       refused
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from specdec.errors import InputError
from specdec.model.loading.adapters import base_of, merge_adapter
from specdec.model.loading.faults import faults, require_whole
from specdec.model.loading.headers import require_scales, stored_tensors
from specdec.model.loading.keys import require_every_weight, say_unused
from specdec.model.loading.quiet import quiet
from specdec.model.loading.values import require_eos_ids, require_finite_weights


def read_model(
    name: str, dtype: torch.dtype | str, hub: Mapping[str, Any], adapter: str | None = None, option: str = "target.name"
) -> PreTrainedModel:
    """Read the model of a checkpoint, to the CPU.

    Args:
        name: hub id or folder. For an adapter, the base model that it names is read.
        dtype: dtype of the weights; `auto` is the checkpoint's own.
        hub: `revision` and `trust_remote_code`.
        adapter: hub id or folder of a PEFT adapter, which is merged into the weights.
        option: name used in error messages.

    Raises:
        InputError: no such checkpoint; a file that is truncated, an LFS pointer or malformed; weights that are missing,
            of another shape or not finite; EOS ids that are no numbers; an architecture that is no causal LM; a
            quantisation that cannot be read.
    """
    adapter_option = f"{option.partition('.')[0]}.adapter" if adapter else option
    if adapter is None and (base := base_of(name, hub, option)) is not None:
        name, adapter = base, name
        hub = {**hub, "revision": None}  # the revision is the adapter's
    require_whole(Path(name) / "generation_config.json", name, option)
    with faults(name, option), quiet():
        config = AutoConfig.from_pretrained(name, **hub)
    with faults(name, option, config), quiet():
        kind = _kind(config, name, option)
        model, info = kind.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **hub
        )
    require_every_weight(model, info, name, option)
    with faults(name, option, config):
        stored = stored_tensors(name, hub["revision"])
    say_unused(model, info, name, stored)
    if getattr(config, "quantization_config", None):
        require_scales(stored, name, option)
    if adapter is not None:
        model = merge_adapter(model, adapter, adapter_option)
    require_finite_weights(model, name, option)
    require_eos_ids(model, name, option)
    _say_quantised(config, model, name)
    return _text_part(model, name)


def _kind(config: PreTrainedConfig, name: str, option: str) -> Any:
    """Return the auto class that reads this architecture.

    Raises:
        InputError: it is no causal LM.
    """
    if type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping and not config.is_encoder_decoder:
        return AutoModelForImageTextToText
    encoder = " (an encoder with a decoder)" if config.is_encoder_decoder else ""
    raise InputError(
        option, expected="a causal language model", got=f"{name!r}, a {config.model_type} model{encoder}",
        fix="choose a decoder-only model",
    )  # fmt: skip


def _say_quantised(config: PreTrainedConfig, model: PreTrainedModel, name: str) -> None:
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        kept = getattr(model, "hf_quantizer", None) is not None and hasattr(model.config, "quantization_config")
        how = "computed with as transformers does" if kept else f"read as {str(model.dtype).removeprefix('torch.')}"
        warnings.warn(f"{name}: its weights are quantised by {method} and {how}", stacklevel=4)


def _text_part(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the text LM inside a model of text and images if `transformers` has its class, else the model itself."""
    text = model.config.get_text_config()
    if text is model.config or not isinstance(model, GenerationMixin):
        return model
    causal = AutoModelForCausalLM._model_mapping.get(type(text), None)
    if causal is None or isinstance(causal, tuple) or isinstance(model, causal):
        warnings.warn(f"{name}: {type(model).__name__} is given text alone, no images", stacklevel=4)
        return model
    with torch.device("meta"):
        alone: PreTrainedModel = causal(text)
    body = next((m for m in model.modules() if type(m) is type(alone.base_model)), None)
    if body is None:
        return model
    setattr(alone, alone.base_model_prefix, body)
    alone.set_output_embeddings(model.get_output_embeddings())
    alone.generation_config = model.generation_config
    warnings.warn(f"{name}: of {type(model).__name__} the text model {causal.__name__} is used alone", stacklevel=4)
    return alone.eval()
