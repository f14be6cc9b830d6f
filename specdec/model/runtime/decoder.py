"""All layers of a Llama-like model in one call, for few tokens on a CPU (`kernels/decoder.cpp`).

The model is read, not changed. If its modules are those the kernel knows (RMSNorm, rotary embedding, grouped-query
attention, a gated SiLU feed-forward part), their weights are used in place. The modules might still be wired
differently than in the kernel, so `TargetModel` compares the two before it relies on it. Covers Llama, Mistral, Qwen2,
Qwen3, Phi-3, SmolLM3 and similar models.
"""

from __future__ import annotations

import ctypes
import operator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from specdec.model.cache import TreeCache
from specdec.model.runtime import library as lib
from specdec.model.runtime.few_rows import NotCovered, matrix
from specdec.model.runtime.quantised import QuantisedLinear

_RECORDER = "specdec_recorder"


class FusedDecoder:
    """Computes the layers of `model` with the kernel.

    Weights are read in place: their values may change. Once tensors have been moved or exchanged, nothing is covered
    any more.

    Raises:
        NotCovered: a module, an attention feature or a dtype that the kernel does not have.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base: Any = model.base_model
        self._decode = lib.kernels().decode
        try:
            calls, windows = _attention_calls(model)
            heads, kv_heads, head_dim, scale = calls[0]
            if any(call != calls[0] for call in calls):
                raise NotCovered("its layers differ in their attention")
            self._window = min(windows, default=None)
            self._rotary: Any = base.rotary_emb
            embed: Any = model.get_input_embeddings()
            self._embed: nn.Module = embed
            self._layers = (lib.Layer * len(base.layers))(
                *[_layer(layer, heads, kv_heads, head_dim) for layer in base.layers]
            )
            output: Any = model.get_output_embeddings()
            self._vocabulary = output.out_features
            cos, _ = self._cos_sin(torch.zeros(1, 1, dtype=torch.long))
            inner = self._layers[0].gate_up[0].n
            self._struct = lib.Decoder(
                embed.weight.shape[1],
                inner,
                cos.shape[-1],
                lib.Heads(heads, kv_heads, head_dim, scale),
                _norm(base.norm),
                matrix(output),
                self._layers,
            )
        except (AttributeError, TypeError) as error:
            raise NotCovered(f"{type(model).__name__} is built differently ({error})") from error
        self._dim, self._cache_shape = embed.weight.shape[1], (kv_heads, head_dim)
        self._places = [
            (tensors, name)
            for module in model.modules()
            for tensors in (module._parameters, module._buffers if isinstance(module, QuantisedLinear) else {})
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._tensors: list[Any] = [tensors[name] for tensors, name in self._places]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._cache_tables: WeakKeyDictionary[TreeCache, Any] = WeakKeyDictionary()

    def covers(self, cache: TreeCache) -> bool:
        """Whether every text that fits the cache is seen as a whole (the kernel has no sliding windows)."""
        return self.reads_weights and (self._window is None or cache.capacity <= self._window)

    @property
    def reads_weights(self) -> bool:
        """Whether the model's tensors are still those that were read. The old ones are kept alive, so that their memory
        is never reused."""
        now = [tensors.get(name) for tensors, name in self._places]
        same = all(map(operator.is_, now, self._tensors))
        return same and [tensor.data_ptr() for tensor in self._tensors] == self._addresses

    def forward(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        logits_at: Int[Tensor, "batch kept"] | None,
        first: int = 0,
        stream: Float[Tensor, "batch new dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch kept vocab"], Float[Tensor, "batch new dim"]]:
        """Compute (logits, hidden) as `TargetModel.forward` does. Padding (token -1) is not computed: its results are
        zeros.

        Args:
            cache: as in `TargetModel.forward`.
            tokens: as in `TargetModel.forward`.
            positions: as in `TargetModel.forward`.
            mask: as in `TargetModel.forward`.
            logits_at: as in `TargetModel.forward`.
            first: the first layer that is run.
            stream: the residual stream before layer `first`; None for the embeddings.
        """
        batch, new = tokens.shape
        self._require(cache, tokens, positions, mask, stream, (first, len(self._layers)))
        if logits_at is not None and logits_at.numel() and not 0 <= int(logits_at.min()) <= int(logits_at.max()) < new:
            raise IndexError(f"logits_at: index out of range for {new} nodes")
        real = tokens >= 0
        x = self._embed(tokens[real]) if stream is None else stream[real]
        wanted = torch.arange(batch)[:, None] * new + (torch.arange(new) if logits_at is None else logits_at)
        kept = real.flatten()[wanted]
        keep = (real.flatten().cumsum(0) - 1)[wanted[kept]]  # their indices among the computed nodes
        logits, hidden = self._run(cache, x, real, positions, mask, (first, len(self._layers)), keep)
        return _spread(logits, kept), _spread(hidden, real)

    def lower(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        layers: int,
    ) -> Float[Tensor, "batch new dim"]:
        """Compute the residual stream after the first `layers` layers; zeros for padding.

        Arguments as in `TargetModel.lower`.
        """
        self._require(cache, tokens, positions, mask, None, (0, layers))
        real = tokens >= 0
        x = self._embed(tokens[real])
        self._run(cache, x, real, positions, mask, (0, layers), None)
        return _spread(x, real)

    def _run(
        self,
        cache: TreeCache,
        x: Float[Tensor, "rows dim"],
        real: Bool[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        layers: tuple[int, int],
        keep: Int[Tensor, " kept"] | None,
    ) -> tuple[Float[Tensor, "kept vocab"], Float[Tensor, "rows dim"]]:
        """Run layers [first, last) on the stream `x` of the real nodes, in place. Then, unless `keep` is None, compute
        final norm and the logits of its rows.

        Args:
            cache: as in `forward`.
            x: residual stream of the real nodes, which is overwritten.
            real: which nodes are not padding.
            positions: as in `forward`.
            mask: as in `forward`.
            layers: (first, last).
            keep: rows of `x` to compute logits for, or None.
        """
        batch, new = real.shape
        at = real.flatten().nonzero()[:, 0]
        cos, sin = (part.flatten(0, 1)[at] for part in self._cos_sin(positions[:, -new:]))
        mask = None if mask is None else mask.contiguous()
        texts = lib.Texts(
            batch,
            positions.shape[1],
            new,
            cache.lengths.data_ptr(),
            lib.address(mask),
            cache.capacity,
            len(at),
            at.data_ptr(),
        )
        return self._call(texts, layers, x, (cos.data_ptr(), sin.data_ptr(), self._table(cache)), keep)

    def _require(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        stream: Tensor | None,
        layers: tuple[int, int],
    ) -> None:
        """Refuse input that would make the kernel read or write out of bounds. The messages are for callers.

        Args:
            cache: as in `forward`.
            tokens: as in `forward`.
            positions: as in `forward`.
            mask: as in `forward`.
            stream: as in `forward`.
            layers: (first, last), the layers to run.

        Raises:
            RuntimeError: shapes, dtypes or devices that do not fit together, a cache of another model or too small, or
                layers [first, last) that the model does not have.
        """
        (batch, new), block = tokens.shape, positions.shape[-1]
        _require_each(
            ("tokens", tokens, (batch, new), torch.int64),
            ("positions", positions, (batch, block), torch.int64),
            ("mask", mask, (batch, new, block), torch.bool),
            ("stream", stream, (batch, new, self._dim), torch.float32),
            ("lengths", cache.lengths, (batch,), torch.int64),
        )
        if not new <= block:
            raise RuntimeError(f"{new} nodes of a block of {block} cannot go through the layers")
        if not 0 <= layers[0] <= layers[1] <= len(self._layers):
            raise RuntimeError(f"layers {layers[0]} to {layers[1]} are not all among its {len(self._layers)}")
        if not cache.has_room(block):
            raise RuntimeError(
                f"a cache of {cache.capacity} slots is too small for {max(cache.host_lengths)} + {block}"
            )

    def read_out(self, stream: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new vocab"]:
        """Apply final norm and output layer, as in `TargetModel.read_out`."""
        _require_each(("stream", stream, (*stream.shape[:2], self._dim), torch.float32))
        x = stream.flatten(0, 1).contiguous()
        rows, lengths, end = torch.arange(len(x)), torch.zeros(1, dtype=torch.long), len(self._layers)
        texts = lib.Texts(1, 0, len(x), lengths.data_ptr(), None, 0, len(x), rows.data_ptr())  # no layer, no attention
        logits, _ = self._call(texts, (end, end), x, (None, None, None), rows)
        return logits.view(*stream.shape[:2], -1)

    def _call(
        self,
        texts: lib.Texts,
        layers: tuple[int, int],
        x: Float[Tensor, "rows dim"],
        tables: tuple[Any, Any, Any],
        keep: Int[Tensor, " kept"] | None,
    ) -> tuple[Float[Tensor, "kept vocab"], Float[Tensor, "rows dim"]]:
        """Call the kernel. All tensors are used in place, so the caller keeps alive what the tables point to.

        Args:
            texts: what the nodes see.
            layers: layers [first, last).
            x: residual stream, which is overwritten.
            tables: addresses of cosines, sines and the cache's table.
            keep: rows of `x` to compute logits for, or None.
        """
        hidden = torch.empty_like(x)
        logits = torch.empty(0 if keep is None else len(keep), self._vocabulary)
        forward = lib.Forward(
            texts,
            *layers,
            x.data_ptr(),
            *tables,
            None if keep is None else hidden.data_ptr(),
            len(logits),
            lib.address(keep),
            logits.data_ptr(),
        )
        self._decode(self._struct, forward)
        return logits, hidden

    def _cos_sin(self, positions: Int[Tensor, "batch new"]) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary(torch.empty(0), positions)
        return cos.contiguous(), sin.contiguous()

    def _table(self, cache: TreeCache) -> int:
        """Return the address of the list of all layers' keys and values in the cache."""
        if cache not in self._cache_tables:
            layers = [cache.layer(i) for i in range(cache.depth)]
            kv_heads, dim = self._cache_shape
            shape = (len(cache.host_lengths), kv_heads, cache.capacity, dim)
            fits = len(layers) == len(self._layers) and all(
                lib.plain(part) and part.shape == shape and part.is_contiguous() for layer in layers for part in layer
            )
            if not fits:
                raise RuntimeError(f"the cache is not one of this model: expected {len(self._layers)} layers {shape}")
            tensors = [tensor for i in range(len(self._layers)) for tensor in cache.layer(i)]
            self._cache_tables[cache] = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
        return ctypes.addressof(self._cache_tables[cache])


def _require_each(*expected: tuple[str, Tensor | None, tuple[int, ...], torch.dtype]) -> None:
    """Check (name, tensor, shape, dtype) of each tensor, which must be on a CPU.

    Raises:
        RuntimeError: names the tensors that differ.
    """
    wrong = [
        f"{name} {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
        for name, tensor, shape, dtype in expected
        if tensor is not None
        and not (type(tensor) is Tensor and tensor.is_cpu and tensor.dtype is dtype and tensor.shape == shape)
    ]
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)} cannot go through the layers")


def _spread(rows: Float[Tensor, "rows dim"], places: Bool[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes dim"]:
    """Return `rows` at the true `places`, and zeros at the others."""
    if len(rows) == places.numel():
        return rows.view(*places.shape, rows.shape[-1])
    spread = rows.new_zeros(*places.shape, rows.shape[-1])
    spread[places] = rows
    return spread


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
