"""A machine with round figures, and models small enough to count by hand."""

from __future__ import annotations

from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig

from specdec.hardware import Machine, ModelShape

A100 = Machine("A100", {"bfloat16": 312, "int8": 624, "float32": 19.5}, 2039, 80, {"nvlink": 300, "pcie": 32})
# a byte takes a nanosecond, an operation a tenth
SLOW = Machine("slow", {"bfloat16": 0.01, "float32": 0.01}, 1, 1, {"wire": 0.1})


def dense(heads: int = 2, kv_heads: int = 2, **options: object) -> PreTrainedConfig:
    sizes = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    return LlamaConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, **{**sizes, **options})


def mixture() -> PreTrainedConfig:
    return MixtralConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    )


def shape(config: PreTrainedConfig) -> ModelShape:
    return ModelShape.of(config, "made")
