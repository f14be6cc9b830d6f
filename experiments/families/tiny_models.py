"""Build a tiny random model of any causal-LM type of transformers.

The default config of a type is shrunk by the names of its attributes. So a new type needs no entry here unless its
config has special constraints (`SPECIAL`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
WINDOW = 6  # tokens of sliding windows and chunks; texts are several windows long
CONTEXT = 256
GAIN, BIAS = 1.5, 0.3  # scale of matrices and biases, large enough that attention and every bias change the text

LAYERS, HEADS, KV_HEADS, HIDDEN = 3, 4, 2, 32
# Attributes of a config, and their values if the config has them.
SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "output_embedding_size", "dim_model"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff"), 48),
    **dict.fromkeys(("n_inner", "feed_forward_size", "ffn_hidden_size", "d_inner", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "swa_num_key_value_heads"), KV_HEADS),
    "swa_num_attention_heads": HEADS,
    **dict.fromkeys(("head_dim", "attention_head_dim", "global_head_dim", "dim_head", "d_head", "d_kv"), 8),
    **dict.fromkeys(("kv_channels", "swa_head_dim", "swa_v_head_dim", "attention_hidden_size"), 8),
    "rotary_dim": 4,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    "v_head_dim": 12,
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "n_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "moe_topk", "top_k_experts"), 2),
    "num_selected_experts": 2,
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length"), CONTEXT),
}  # fmt: skip
# Constraints between attributes of one config, which the sizes above do not satisfy.
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_MANY_HEADS = {"num_key_value_heads": HEADS}
_SHARED = ["sliding_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _HYBRID,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "topk_method": "greedy", "num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"kv_n_heads": KV_HEADS, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {**_MANY_HEADS, "swa_num_key_value_heads": HEADS},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "layer_types": _SHARED, "laurel_rank": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": WINDOW},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "mamba"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {**_HYBRID, "num_experts": 4, "num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": KV_HEADS},
    "qwen3_next": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
    "qwen4_exp_text": _HYBRID,
    "reformer": {"is_decoder": True, "attn_layers": ["local", "local", "local"], "axial_pos_embds": False},
    "rwkv": {"attention_hidden_size": HIDDEN},
    "zaya": {"num_experts_per_tok": 1},
}


def causal_lm_types() -> list[str]:
    """Return the model types of transformers' causal-LM mapping, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **extra: Any) -> Any:
    """Return the shrunk config of the type; `extra` attributes override it."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**{**_shrunk(config_class, config_class()), **SPECIAL.get(model_type, {}), **extra})


def _shrunk(config_class: Any, default: Any) -> dict[str, Any]:
    """Return the arguments of a small config, including the configs inside it."""
    known = default.to_dict()
    shrunk: dict[str, Any] = {name: size for name, size in SIZES.items() if known.get(name) is not None}
    if known.get("kv_lora_rank") is not None:
        shrunk.pop("num_key_value_heads", None)  # latent attention has keys for every head
    if isinstance(known.get("pad_token_id"), int) and known["pad_token_id"] >= VOCAB:
        shrunk["pad_token_id"] = 0
    if "is_decoder" in known:
        shrunk["is_decoder"] = True
    shrunk["tie_word_embeddings"] = False  # a tied random model only repeats its input
    for name, inner_class in config_class.sub_configs.items():
        inner = getattr(default, name, None)
        if inner is not None:
            inside = type(inner) if inner_class.__name__ == "AutoConfig" else inner_class
            special = SPECIAL.get(inner.model_type, {})
            shrunk[name] = {**_shrunk(inside, inner), **special, "model_type": inner.model_type}
    return shrunk


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Give every weight a value that affects the text: matrices and biases normal, others close to what they were."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if id(weight) in tables:
                weight.copy_(noise)
            elif name.endswith("bias"):
                weight.copy_(BIAS * noise)
            elif weight.dim() > 1:
                weight.copy_(GAIN / weight.shape[-1] ** 0.5 * noise)
            else:
                weight.add_(0.1 * noise)


def tiny_model(model_type: str, seed: int = 0, **extra: Any) -> PreTrainedModel:
    """Return a random model of the type in fp32 and eval mode, whose generation config ends no text early."""
    config = tiny_config(model_type, **extra)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    generation = model.generation_config
    generation.eos_token_id = generation.bos_token_id = generation.pad_token_id = None
    return model.eval()
