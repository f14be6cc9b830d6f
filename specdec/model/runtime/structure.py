"""Read a Llama-like model as the structs of the kernel (`kernels/decoder.cpp`), which point to the model's weights.

The model is read, not changed. Its modules must be those that the kernel knows: RMSNorm, rotary embedding,
grouped-query attention, a gated SiLU feed-forward part. They might still be wired differently than in the kernel, so
`TargetModel` compares the two before it relies on it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from specdec.model.runtime import library as lib
from specdec.model.runtime.few_rows import NotCovered, matrix
from specdec.model.runtime.packed import PACKED

_RECORDER = "specdec_recorder"


class DecoderStructure:
    """The modules and weights of a model that the kernel needs.

    Raises:
        NotCovered: a module, an attention feature or a dtype that the kernel does not have.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base: Any = model.base_model
        try:
            calls, windows = _attention_calls(model)
            heads, kv_heads, head_dim, scale = calls[0]
            if any(call != calls[0] for call in calls):
                raise NotCovered("its layers differ in their attention")
            self.window = min(windows, default=None)
            self.rotary: Any = base.rotary_emb
            embed: Any = model.get_input_embeddings()
            output: Any = model.get_output_embeddings()
            self.embed: nn.Module = embed
            self.dim: int = embed.embedding_dim
            self.vocabulary: int = output.out_features
            layers = [_layer(layer, heads, kv_heads, head_dim) for layer in base.layers]
            self.depth, self.kv_shape = len(layers), (kv_heads, head_dim)
            cos, _ = self.rotary(torch.empty(0), torch.zeros(1, 1, dtype=torch.long))
            self.struct = lib.Decoder(
                self.dim,
                layers[0].gate_up[0].n,
                cos.shape[-1],
                lib.Heads(heads, kv_heads, head_dim, scale),
                _norm(base.norm),
                matrix(output),
                (lib.Layer * len(layers))(*layers),
            )
        except (AttributeError, TypeError) as error:
            raise NotCovered(f"{type(model).__name__} is built differently ({error})") from error
        self._owners = [
            (tensors, name)
            for module in model.modules()
            for tensors in (module._parameters, module._buffers if isinstance(module, PACKED) else {})
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._tensors: list[Any] = [tensors[name] for tensors, name in self._owners]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]

    @property
    def current(self) -> bool:
        """Whether the model's tensors are still those that were read. The old ones are kept alive, so that their memory
        is never reused."""
        now = [tensors.get(name) for tensors, name in self._owners]
        same = all(map(operator.is_, now, self._tensors))
        return same and [tensor.data_ptr() for tensor in self._tensors] == self._addresses


def _layer(layer: Any, heads: int, kv_heads: int, head_dim: int) -> lib.Layer:
    attention, mlp = layer.self_attn, layer.mlp
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    if hasattr(attention, "qkv_proj"):  # Phi-3 has one matrix for all three, and one for gate and up
        starts = [0, sizes[0], sizes[0] + sizes[1]]
        qkv = [matrix(attention.qkv_proj, start, size) for start, size in zip(starts, sizes, strict=True)]
    else:
        qkv = [matrix(linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    if hasattr(mlp, "gate_up_proj"):
        inner = mlp.gate_up_proj.out_features // 2
        gate_up = [matrix(mlp.gate_up_proj, start, inner) for start in (0, inner)]
        activation = mlp.activation_fn
    else:
        gate_up = [matrix(mlp.gate_proj), matrix(mlp.up_proj)]
        activation = mlp.act_fn
    if [m.n for m in qkv] != sizes or not type(activation).__name__.startswith("SiLU"):
        raise NotCovered(f"{type(mlp).__name__} with {type(activation).__name__}")
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    if any(norm is not None and norm.weight.numel() != head_dim for norm in (q_norm, k_norm)):
        raise NotCovered("its queries are normed across heads")
    return lib.Layer(
        _norm(layer.input_layernorm),
        _norm(q_norm),
        _norm(k_norm),
        _norm(layer.post_attention_layernorm),
        (lib.Matrix * 3)(*qkv),
        matrix(attention.o_proj),
        (lib.Matrix * 2)(*gate_up),
        matrix(mlp.down_proj),
        int(getattr(attention, "use_rope", True)),
    )


def _norm(norm: Any) -> lib.Norm:
    if norm is None:
        return lib.Norm(None, 0.0)
    if not type(norm).__name__.endswith("RMSNorm") or norm.weight.dtype is not torch.float32:
        raise NotCovered(f"{type(norm).__name__} in {norm.weight.dtype}")
    return lib.Norm(norm.weight.data_ptr(), norm.variance_epsilon)


def _attention_calls(model: PreTrainedModel) -> tuple[list[tuple[int, int, int, float]], list[int]]:
    """Return query heads, KV heads, head size and scale of every layer, as observed in the model's own attention calls,
    and its sliding windows."""
    calls: list[tuple[int, int, int, float]] = []
    windows: list[int] = []

    def record(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        for feature in ("softcap", "s_aux"):
            if kwargs.get(feature) is not None:
                raise NotCovered(f"{type(module).__name__} has a {feature}")
        if attention_mask is not None:
            raise NotCovered(f"{type(module).__name__} makes a mask of its own")
        if key.shape != value.shape or query.dtype is not torch.float32:
            raise NotCovered(f"{type(module).__name__} has keys and values of two sizes, or is not in fp32")
        if query.shape[-1] % lib.kernels().lanes():
            raise NotCovered(f"heads of size {query.shape[-1]}")
        calls.append((query.shape[1], key.shape[1], query.shape[-1], scaling))
        groups = query.shape[1] // key.shape[1]  # one token attends to itself only
        return value.repeat_interleave(groups, 1).transpose(1, 2), None

    def note_window(*, mask_function: object, local_size: int | None = None, **_: object) -> None:
        if local_size is not None:
            windows.append(local_size)
        elif mask_function is not causal_mask_function:
            raise NotCovered(f"{type(model).__name__} masks by a rule of its own")

    AttentionInterface.register(_RECORDER, record)
    AttentionMaskInterface.register(_RECORDER, note_window)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_RECORDER)
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    finally:
        model.set_attn_implementation(before)
    if not calls:
        raise NotCovered("its attention cannot be exchanged")
    return calls, windows
