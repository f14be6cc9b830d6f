"""Count a model's elements, KV cache, attention and experts from its config. No weights are needed.

transformers builds the model on the meta device: its modules have shapes but no memory. So every model family is
counted by its own modules, not by a formula of ours. The shape of its attention is read from the config.
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

EXPERTS = re.compile(r"(.*)\.experts\b")  # routed experts of a layer; shared experts count as dense matrices
ATTENDING = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Precision:
    """Names of dtypes.

    Args:
        weights, kv: dtypes in which matrices and the KV cache are stored.
        compute: dtype of matrix products, activations, norms and biases.

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
    """Attention of a group of equal layers.

    Args:
        layers: number of layers.
        query_heads: query heads per layer.
        kv_heads: KV heads per layer; 1 for multi-query attention.
        key, value: dimensions of a key and of a value, per head.
        window: number of tokens in the sliding window, None for full attention.
    """

    layers: int
    query_heads: int
    kv_heads: int
    key: int
    value: int
    window: int | None = None


@dataclass(frozen=True)
class Experts:
    """Routed experts of a group of equal layers.

    Args:
        layers: number of layers with experts.
        count: experts per layer.
        per_token: experts that a token uses in a layer.
        elements: elements of one expert in one layer.
        features: sum of the input and output dimensions of an expert's matrices.
    """

    layers: int
    count: int
    per_token: int
    elements: int
    features: int

    def touched(self, tokens: int) -> float:
        """Return the expected number of distinct experts that a number of tokens uses in a layer.

        E (1 - (1 - k/E)^tokens), if each token chooses k = `per_token` of E = `count` experts at random. Real routing
        is less uniform and uses fewer.
        """
        return self.count * (1 - (1 - self.per_token / self.count) ** tokens)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; its elements are counted by what a forward does with them.

    Args:
        name: name used in results.
        dense: elements of matrices that every token is multiplied with, without the output layer.
        output: elements of the output layer.
        vectors: elements of norms and biases.
        looked_up: elements of embedding tables that are not tied to the output layer; a token reads one row.
        features: sum of the input and output dimensions of the dense matrices; gives a token's activations.
        hidden: dimension of the residual stream.
        vocabulary: logits per token.
        layers: number of decoder layers; determines the communication between devices.
        attention: groups of equal attention layers.
        experts: routed experts, None for a dense model.
        window: context window in tokens, None if the config has none.
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
        """Number of all parameters."""
        experts = self.experts.layers * self.experts.count * self.experts.elements if self.experts else 0
        return self.dense + self.output + self.vectors + self.looked_up + experts

    @property
    def kv_elements(self) -> int:
        """Elements of the keys and values of one token in all layers, ignoring sliding windows."""
        return sum(a.layers * a.kv_heads * (a.key + a.value) for a in self.attention)

    @classmethod
    def of(cls, config: PreTrainedConfig, name: str) -> ModelShape:
        """Return the sizes of the model of a transformers config.

        Args:
            config: the config.
            name: name used in results and error messages.

        Raises:
            InputError: not a causal language model, or its attention is latent, linear or recurrent, which is not
                supported.
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
        """Return the sizes of drafting heads on the target's hidden states. Heads have no attention and no KV cache.

        Args:
            elements: number of parameters, output layers included.
            target: the target.
            name: name used in results and error messages.

        Raises:
            InputError: `elements` < 1.
        """
        if elements < 1:
            raise _bad(name, "a number of parameters >= 1", str(elements))
        return cls(name, elements, 0, 0, 0, 0, target.hidden, target.vocabulary, 0, ())


class _Parts:
    """A model's parameters, each counted once, by what a forward does with them."""

    def __init__(self) -> None:
        self.dense = self.output = self.vectors = self.looked_up = self.features = 0
        self.experts: dict[str, tuple[int, int]] = {}  # by layer: elements of all its experts, features of one

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
    """Return the attention layers, equal ones as one group.

    Raises:
        InputError: attention that is not supported.
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
