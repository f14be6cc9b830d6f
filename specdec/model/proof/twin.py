"""A small random model of the same class and kind of config, for checks that would take too long with a real one.

Windows are counted in cache slots, so a window of 4,096 has an effect in longer texts only. The twin has the same
windows, at most 8 tokens wide. Its rotary embeddings switch behind every text it reads, because the model itself is
checked past the lengths that its config names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

WINDOW = 8
LARGE = 20_000_000  # parameters; in a larger twin, vocabulary and feed-forward layers are cut down
VOCABULARY, INNER = 128, 64
LONG = 4096  # up to this length in tokens, the twin's rotary embeddings do not depend on the length
LENGTHS = ("max_position_embeddings", "original_max_position_embeddings")
LEVELS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention", "attention_window_size")


def windows(config: PreTrainedConfig) -> dict[str, int]:
    """Return the options of a text config that limit how far back attention sees, and their values."""
    text = config.get_text_config()
    found = {name: getattr(text, name, None) for name in LEVELS}
    return {name: value for name, value in found.items() if isinstance(value, int) and value > 0}


def small_twin(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Return a model of the same class with few random layers of every kind, in fp32 on the same device.

    attention: the implementation that transformers chose for the model.
    """
    config = _config(model.config)
    with torch.device("meta"):
        size = sum(p.numel() for p in type(model)(copy.deepcopy(config)).parameters())
    if size > LARGE:
        _cut_down(config)
    with torch.random.fork_rng(devices=[]), torch.device(model.device):
        torch.manual_seed(0)
        twin = type(model)(config).float()
        generator = torch.Generator(model.device).manual_seed(0)
        with torch.no_grad():
            for weight in twin.parameters():
                if weight.dim() > 1:  # large enough that attention matters
                    weight.normal_(0.0, weight.shape[-1] ** -0.5, generator=generator)
    twin.set_attn_implementation(attention)
    return twin.to(model.device).eval()


def _config(whole: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(whole)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    text: Any = config.get_text_config()
    for name, value in windows(config).items():
        setattr(text, name, min(value, WINDOW))
    _lengthen(vars(text))
    kept = list(_one_of_each_kind(text))
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, [value[layer] for layer in kept])
    text.num_hidden_layers = len(kept)
    if getattr(text, "num_kv_shared_layers", 0):  # every layer of a twin keeps its own keys and values
        text.num_kv_shared_layers = 0
    return config


def _lengthen(options: MutableMapping[str, Any]) -> None:
    """Raise every length at which embeddings switch to at least `LONG`, including those of the rotary parameters."""
    for name, value in options.items():
        if name in LENGTHS and isinstance(value, int):
            options[name] = max(value, LONG)
        elif isinstance(value, dict) and (name.startswith("rope_") or name.endswith("_attention")):
            _lengthen(value)


def _one_of_each_kind(text: Any) -> Iterator[int]:
    """Yield the indices of the first two layers, and of the first layer of every kind that the config distinguishes."""
    count = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or [None] * count
    firsts = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    chosen = sorted({*firsts.values(), 0, min(1, count - 1)})
    yield from chosen


def _cut_down(config: PreTrainedConfig) -> None:
    text: Any = config.get_text_config()
    for name in list(vars(text)):
        value = getattr(text, name)
        if isinstance(value, int) and name.endswith(("intermediate_size", "ffn_dim", "n_inner")):
            setattr(text, name, min(value, INNER))
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
