"""Targets of random weights in any shape, so that costs of large models are measured without their checkpoints."""

from __future__ import annotations

import sys
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from specdec.errors import InputError
from specdec.hardware.configs import load_config
from specdec.model.load import byte_tokenizer, resolve_device, resolve_dtype
from specdec.model.runtime import pack
from specdec.model.target import TargetModel


def load_random(
    config: str,
    seed: int = 0,
    layers: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    storage: str = "exact",
) -> TargetModel:
    """Return a model of a given shape with seeded random weights.

    Its texts mean nothing, and no token ends them. A byte tokenizer comes with it, if its vocabulary is large enough.

    Args:
        config: name of a kept config (llama3_8b ...), `tiny`, a folder or a hub id; no weights are read.
        seed: seed of the weights. They differ between devices.
        layers: number of layers; None for the config's.
        dtype: float32, bfloat16, float16, or auto (the config's own on CUDA, float32 on a CPU).
        device: as in `load_hub`.
        kernel: see `TargetModel`.
        runtime: see `TargetModel`.
        storage: as in `load_hub`.

    Raises:
        InputError: no such config, not a causal LM, fewer than one layer, or too little memory.
    """
    where, shape = resolve_device(device), _shape(config, layers)
    wanted = resolve_dtype("float32" if dtype == "auto" and where.type == "cpu" else dtype)
    kind = wanted if isinstance(wanted, torch.dtype) else _own_dtype(shape)
    _require_memory(config, shape, kind, where)
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        with where:
            model: Any = AutoModelForCausalLM.from_config(shape, dtype=kind)
    model.generation_config.eos_token_id = None
    if line := pack(model, storage, fast=runtime != "stock"):
        sys.stderr.write(line + "\n")
    tokenizer = byte_tokenizer()
    enough = len(tokenizer) <= shape.get_text_config().vocab_size
    return TargetModel(
        model, name=f"random {config}", kernel=kernel, runtime=runtime, tokenizer=tokenizer if enough else None
    )


def _shape(name: str, layers: int | None) -> PreTrainedConfig:
    config = load_config(name)
    text = config.get_text_config()
    if layers is not None:
        if layers < 1:
            raise InputError("target.layers", expected="1 or more", got=layers, fix="use layers=null for all")
        if layers > text.num_hidden_layers:
            expected = f"at most the {text.num_hidden_layers} layers of {name}"
            raise InputError("target.layers", expected=expected, got=layers, fix="use layers=null for all")
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    for each in {id(c): c for c in (config, text)}.values():
        each.eos_token_id = None
    return config


def _own_dtype(config: PreTrainedConfig) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _require_memory(name: str, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a model that does not fit, before any memory is taken.

    Raises:
        InputError: it does not fit, or the config is not one of a causal LM.
    """
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            "target.config",
            expected="the config of a causal LM",
            got=f"{name!r} ({type(config).__name__}: {str(error).splitlines()[0][:100]})",
            fix="choose another config",
        ) from error
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            "target.config",
            expected=f"a model of at most {free / 2**30:.1f} GiB (what is free on {device})",
            got=f"{name} with {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}",
            fix="lower target.layers or use target.dtype=bfloat16",
        )
