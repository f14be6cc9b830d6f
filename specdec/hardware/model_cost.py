"""What a model's config says of its cost: elements, KV cache, attention, experts. No weights are needed.

The model is built as transformers builds it on the meta device: its modules, with shapes and no memory. So every
family is counted by its own modules, not by a formula of ours; what its attention looks like is read from the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from specdec.errors import InputError
from specdec.hardware.machine import BYTES, require_known

EXPERTS = re.compile(r"(.*)\.experts\b")  # a layer's routed experts; shared ones are like any other matrix
ATTENDING = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Precision:
    """Dtypes by name. weights, kv: as they are stored; compute: of products, and of all else that is read or written.

    Raises:
        InputError: an unknown dtype.
    """

    weights: str = "bfloat16"
    kv: str = "bfloat16"
    compute: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("weights", "kv", "compute"):
            require_known(f"precision.{name}", getattr(self, name), BYTES)


@dataclass(frozen=True)
class Attention:
    """`layers` layers that are alike. kv_heads: 1 is multi-query; key, value: dimensions of a head; window: how many
    tokens a query sees at most, None for all."""

    layers: int
    query_heads: int
    kv_heads: int
    key: int
    value: int
    window: int | None = None


@dataclass(frozen=True)
class Experts:
    """Routed experts of `layers` layers. elements: of one expert in one layer; features: in and out of its matrices."""

    layers: int
    count: int
    per_token: int
    elements: int
    features: int

    def touched(self, tokens: int) -> float:
        """Expected number of distinct experts that `tokens` tokens use in a layer, each of them choosing `per_token`
        at random: E (1 - (1 - k/E)^tokens). Real routing repeats itself more and touches fewer."""
        return self.count * (1 - (1 - self.per_token / self.count) ** tokens)


@dataclass(frozen=True)
class ModelShape:
    """Elements are counted by what a forward does with them.

    dense: of matrices that every token passes, the output layer apart; output: of the output layer; vectors: of norms
    and biases; looked_up: stored, of which a token reads one row (embeddings that are not the output layer's too);
    features: in and out of the dense matrices, so that a token's activations can be counted; hidden: of the residual
    stream; vocabulary: logits of a token; layers: for communication; window: longest text, None when it does not say.
    """

    name: str
    dense: int
    output: int
    vectors: int
    looked_up: int
    features: int
    hidden: int
    vocabulary: int
    layers: int
    attention: Sequence[Attention]
    experts: Experts | None = None
    window: int | None = None

    @property
    def elements(self) -> int:
        """All parameters."""
        experts = self.experts.layers * self.experts.count * self.experts.elements if self.experts else 0
        return self.dense + self.output + self.vectors + self.looked_up + experts

    @property
    def kv_elements(self) -> int:
        """Keys and values of one token in all layers, windows apart."""
        return sum(a.layers * a.kv_heads * (a.key + a.value) for a in self.attention)

    @classmethod
    def of(cls, config: PreTrainedConfig, name: str) -> ModelShape:
        """From a transformers config; `name`: how it is called in results.

        Raises:
            InputError: not a causal LM, or one whose attention is not counted here (latent, linear, recurrent).
        """
        text: Any = config.get_text_config()
        attention = _attention(text, name)
        with _silent(), torch.device("meta"):
            try:
                model: Any = AutoModelForCausalLM.from_config(config)
            except (ValueError, ImportError) as error:
                raise _bad(name, "a config of a causal language model", str(error).splitlines()[0]) from error
        parts = _Parts.of(model)
        return cls(
            name=name,
            dense=parts.dense,
            output=parts.output,
            vectors=parts.vectors,
            looked_up=parts.looked_up,
            features=parts.features,
            hidden=text.hidden_size,
            vocabulary=text.vocab_size,
            layers=text.num_hidden_layers,
            attention=attention,
            experts=_experts(parts, text, name),
            window=getattr(text, "max_position_embeddings", None),
        )

    @classmethod
    def of_heads(cls, elements: int, target: ModelShape, name: str = "heads") -> ModelShape:
        """Heads on the target's hidden states, by their number of parameters, vocabularies included: they are read once
        and have no KV cache.

        Raises:
            InputError: no parameters.
        """
        if elements < 1:
            raise _bad(name, "a number of parameters >= 1", str(elements))
        return cls(name, elements, 0, 0, 0, 0, target.hidden, target.vocabulary, 0, ())


class _Parts:
    """A model's parameters, each counted once, by what a forward does with it."""

    def __init__(self) -> None:
        self.dense = self.output = self.vectors = self.looked_up = self.features = 0
        self.experts: dict[str, tuple[int, int]] = {}  # of a layer: elements of all its experts, features of one

    @classmethod
    def of(cls, model: Any) -> _Parts:
        parts = cls()
        output = model.get_output_embeddings().weight
        parts.output = output.numel()
        seen = {id(output)}
        for path, module in model.named_modules():
            layer = EXPERTS.match(path)
            for weight in module.parameters(recurse=False):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                if isinstance(module, nn.Embedding):
                    parts.looked_up += weight.numel()
                elif layer:
                    elements, features = parts.experts.get(layer[1], (0, 0))
                    matrix = weight.shape[1:] if weight.ndim > 2 else ()  # [experts in out]; the rest are biases
                    parts.experts[layer[1]] = (elements + weight.numel(), features + sum(matrix))
                elif weight.ndim > 1:
                    parts.dense += weight.numel()
                    parts.features += sum(weight.shape)
                else:
                    parts.vectors += weight.numel()
        return parts


def _attention(text: Any, name: str) -> tuple[Attention, ...]:
    """The layers, those that are alike together.

    Raises:
        InputError: attention that is not counted here.
    """
    kinds = getattr(text, "layer_types", None)
    sliding = getattr(text, "sliding_window", None)
    if kinds is None:
        kinds = ["sliding_attention" if sliding else "full_attention"] * text.num_hidden_layers
    foreign = next((kind for kind in kinds if kind not in ATTENDING), None)
    foreign = "latent attention" if getattr(text, "kv_lora_rank", None) else foreign
    if foreign is not None:
        raise _bad(name, f"layers of {' or '.join(ATTENDING)}", f"{foreign} in {type(text).__name__}")
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or (1 if getattr(text, "multi_query", False) else heads)
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return tuple(
        Attention(len(list(alike)), heads, kv_heads, size, size, sliding if kind == "sliding_attention" else None)
        for kind, alike in groupby(sorted(kinds))
    )


def _experts(parts: _Parts, text: Any, name: str) -> Experts | None:
    if not parts.experts:
        return None
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((getattr(text, key) for key in names if getattr(text, key, None)), None)
    per_token = getattr(text, "num_experts_per_tok", None)
    alike = set(parts.experts.values())
    if count is None or per_token is None or len(alike) > 1:
        raise _bad(name, "experts alike in all layers, and their number in the config", type(text).__name__)
    elements, features = alike.pop()
    return Experts(len(parts.experts), count, per_token, elements // count, features)


def _bad(name: str, expected: str, got: str) -> InputError:
    return InputError(name, expected=expected, got=got, fix="choose another model")


@contextmanager
def _silent() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
