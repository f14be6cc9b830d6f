"""Tiny random models of the architectures the project is tested with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

VOCAB = 97
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_LATENT = {
    **_COMMON,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
FAMILIES: dict[str, dict] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 6},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "phi3": _GROUPED,
    # soft caps on scores and logits, and a window in every other layer
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 6, "num_hidden_layers": 6},
    "gpt_neox": _COMMON,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "eos_token_id": None},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    # attention sinks
    "gpt_oss": {**_GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    # latent attention: the cache holds latents, which the model expands before it attends to them
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    # values dealt out to other heads behind the cache, and two attention calls per layer
    "diffllama": _GROUPED,
    # a mask made from the cached values
    "doge": _GROUPED,
    "afmoe": {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
              "sliding_window": 6, "num_dense_layers": 1},
    # learned positions with an offset
    "opt": {"vocab_size": VOCAB, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 128, "eos_token_id": None},
    # a window that lives in the mask alone: chunks, and no rope in some layers
    "llama4_text": {**_GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
                    "attention_chunk_size": 6, "no_rope_layers": [1, 1, 0], "attn_temperature_tuning": True,
                    "floor_scale": 4},
}  # fmt: skip


def build(family: str, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """A random model of the family in fp32, with weights large enough that attention matters. extra: of its config."""
    config = CONFIG_MAPPING[family](**{**FAMILIES[family], **extra})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 or "sink" in name:
                    weight.normal_(0.0, 0.15)
    return model.eval()
