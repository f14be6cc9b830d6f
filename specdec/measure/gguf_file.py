"""Write the target's weights as a GGUF file in fp32, so that llama.cpp runs exactly the same model.

The file is written once per set of weights, into the cache folder. It has no vocabulary: llama.cpp reads and returns
token ids.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.errors import InputError
from specdec.files.home import cached
from specdec.model.target import TargetModel

_VERSION = "1"  # version of the conversion; raise it when the written file changes


def gguf_file(target: TargetModel) -> Path:
    """Return the GGUF file of the target's weights; write it if it is not in the cache.

    Raises:
        InputError: not a plain Llama in fp32, the only supported architecture.
    """
    require_plain_llama(target)
    with target.stock() as model:
        name = f"gguf/{Path(target.name).name}-{_fingerprint(model)}"
        return cached(name, lambda folder: _write(model, folder / "model.gguf")) / "model.gguf"


def require_plain_llama(target: TargetModel) -> None:
    """Refuse targets that the conversion does not support.

    Raises:
        InputError: not a plain Llama in fp32.
    """
    config: Any = target.model.config
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    wrong = [
        *([type(target.model).__name__] if config.model_type != "llama" else []),
        *([f"weights in {target.dtype}"] if target.dtype is not torch.float32 else []),
        *([f"rope_type {scaling!r}"] if scaling != "default" else []),
        *(["biases"] if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False) else []),
    ]
    if wrong:
        raise InputError(
            "llama.cpp",
            expected="a Llama in fp32 with plain rotary positions and without biases",
            got=f"{target.name} ({', '.join(wrong)})",
            fix="leave llama.cpp out: choose another reference",
        )


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.blake2b(f"{_VERSION} {model.config.to_json_string()}".encode(), digest_size=12)
    for name, weight in model.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _write(model: PreTrainedModel, path: Path) -> None:
    config: Any = model.config
    logging.getLogger(gguf.gguf_writer.__name__).setLevel(logging.WARNING)  # it logs every file otherwise
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp uses the embedding if there is no output matrix
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _interleaved(weight, config.head_dim)
        tensor = names.get_name(name, try_suffixes=(".weight",))
        assert tensor is not None, name
        writer.add_tensor(tensor, weight.cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Return the matrix with the rows of each head reordered from (x0 x1 .. y0 y1 ..) to (x0 y0 x1 y1 ..).

    Rotary positions rotate pairs of rows: in transformers a row of each half of a head, in llama.cpp neighbouring rows.
    """
    heads = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)
