"""All layers of a Llama-like model in one call, for few tokens on a CPU (`kernels/decoder.cpp`).

Covers Llama, Mistral, Qwen2, Qwen3, Phi-3, SmolLM3 and similar models.
"""

from __future__ import annotations

import ctypes
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from specdec.model.block import Block
from specdec.model.cache import TreeCache
from specdec.model.runtime import library as lib
from specdec.model.runtime.structure import DecoderStructure


class FusedDecoder:
    """Computes the layers of `model` with the kernel.

    Weights are read in place: their values may change. Once tensors have been moved or exchanged, nothing is covered
    any more.

    Raises:
        NotCovered: a module, an attention feature or a dtype that the kernel does not have.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._decode = lib.kernels().decode
        self._model = DecoderStructure(model)
        self._cache_tables: WeakKeyDictionary[TreeCache, Any] = WeakKeyDictionary()

    def covers(self, cache: TreeCache) -> bool:
        """Whether every text that fits the cache is seen as a whole (the kernel has no sliding windows)."""
        return self.reads_weights and (self._model.window is None or cache.capacity <= self._model.window)

    @property
    def reads_weights(self) -> bool:
        """Whether the model's tensors are still those that the kernel reads."""
        return self._model.current

    def forward(
        self,
        cache: TreeCache,
        block: Block,
        first: int = 0,
        residual: Float[Tensor, "batch new dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch kept vocab"], Float[Tensor, "batch new dim"]]:
        """Compute (logits, hidden) as `TargetModel.forward` does. Padding (token -1) is not computed: its results are
        zeros.

        Args:
            cache: holds the prefix; the new keys and values are written to its block.
            block: the nodes.
            first: the first layer that is run.
            residual: the residual stream before layer `first`; None for the embeddings.
        """
        layers, wanted_nodes = (first, self._model.depth), block.logits_at
        self._require(cache, block, residual, layers)
        batch, new = block.tokens.shape
        if wanted_nodes is None:
            wanted_nodes = torch.arange(new)
        elif wanted_nodes.numel() and not 0 <= int(wanted_nodes.min()) <= int(wanted_nodes.max()) < new:
            raise IndexError(f"logits_at: index out of range for {new} nodes")
        real = block.tokens >= 0
        x = self._model.embed(block.tokens[real]) if residual is None else residual[real]
        wanted = torch.arange(batch)[:, None] * new + wanted_nodes
        kept = real.flatten()[wanted]
        keep = (real.flatten().cumsum(0) - 1)[wanted[kept]]  # their indices among the computed nodes
        logits, hidden = self._run(cache, block, x, layers, keep)
        return _spread(logits, kept), _spread(hidden, real)

    def lower(self, cache: TreeCache, block: Block, depth: int) -> Float[Tensor, "batch new dim"]:
        """Compute the residual stream after the first `depth` layers; zeros for padding."""
        self._require(cache, block, None, (0, depth))
        real = block.tokens >= 0
        x = self._model.embed(block.tokens[real])
        self._run(cache, block, x, (0, depth), None)
        return _spread(x, real)

    def read_out(self, residual: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new vocab"]:
        """Apply final norm and output layer, as in `Halves.read_out`."""
        _require_each(("residual", residual, (*residual.shape[:2], self._model.dim), torch.float32))
        x = residual.flatten(0, 1).contiguous()
        rows, lengths, end = torch.arange(len(x)), torch.zeros(1, dtype=torch.long), self._model.depth
        texts = lib.Texts(1, 0, len(x), lengths.data_ptr(), None, 0, len(x), rows.data_ptr())  # no layer, no attention
        logits, _ = self._call(texts, (end, end), x, (None, None, None), rows)
        return logits.view(*residual.shape[:2], -1)

    def _run(
        self,
        cache: TreeCache,
        block: Block,
        x: Float[Tensor, "rows dim"],
        layers: tuple[int, int],
        keep: Int[Tensor, " kept"] | None,
    ) -> tuple[Float[Tensor, "kept vocab"], Float[Tensor, "rows dim"]]:
        """Run layers [first, last) on the real nodes. Then, unless `keep` is None, compute final norm and logits.

        Args:
            cache: as in `forward`.
            block: as in `forward`.
            x: residual stream of the nodes that are not padding, which is overwritten.
            layers: (first, last).
            keep: rows of `x` to compute logits for, or None.
        """
        at = (block.tokens >= 0).flatten().nonzero()[:, 0]
        rotary = self._model.rotary(torch.empty(0), block.positions[:, -block.new :])
        cos, sin = (part.contiguous().flatten(0, 1)[at] for part in rotary)
        mask = None if block.mask is None else block.mask.contiguous()
        texts = lib.Texts(
            len(block.tokens),
            block.size,
            block.new,
            cache.lengths.data_ptr(),
            lib.address(mask),
            cache.capacity,
            len(at),
            at.data_ptr(),
        )
        return self._call(texts, layers, x, (cos.data_ptr(), sin.data_ptr(), self._table(cache)), keep)

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
        logits = torch.empty(0 if keep is None else len(keep), self._model.vocabulary)
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
        self._decode(self._model.struct, forward)
        return logits, hidden

    def _table(self, cache: TreeCache) -> int:
        """Return the address of the list of all layers' keys and values in the cache."""
        if cache not in self._cache_tables:
            layers, depth = [cache.layer(i) for i in range(cache.depth)], self._model.depth
            kv_heads, dim = self._model.kv_shape
            shape = (len(cache.host_lengths), kv_heads, cache.capacity, dim)
            fits = len(layers) == depth and all(
                lib.plain(part) and part.shape == shape and part.is_contiguous() for layer in layers for part in layer
            )
            if not fits:
                raise RuntimeError(f"the cache is not one of this model: expected {depth} layers {shape}")
            tensors = [tensor for layer in layers for tensor in layer]
            self._cache_tables[cache] = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
        return ctypes.addressof(self._cache_tables[cache])

    def _require(self, cache: TreeCache, block: Block, residual: Tensor | None, layers: tuple[int, int]) -> None:
        """Refuse input that would make the kernel read or write out of bounds. The messages are for callers.

        Args:
            cache: as in `forward`.
            block: as in `forward`.
            residual: as in `forward`.
            layers: (first, last), the layers to run.

        Raises:
            RuntimeError: shapes, dtypes or devices that do not fit together, a cache of another model or too small, or
                layers [first, last) that the model does not have.
        """
        (batch, new), size = block.tokens.shape, block.size
        _require_each(
            ("tokens", block.tokens, (batch, new), torch.int64),
            ("positions", block.positions, (batch, size), torch.int64),
            ("mask", block.mask, (batch, new, size), torch.bool),
            ("residual", residual, (batch, new, self._model.dim), torch.float32),
            ("lengths", cache.lengths, (batch,), torch.int64),
        )
        if not new <= size:
            raise RuntimeError(f"{new} nodes of a block of {size} cannot go through the layers")
        if not 0 <= layers[0] <= layers[1] <= self._model.depth:
            raise RuntimeError(f"layers {layers[0]} to {layers[1]} are not all among its {self._model.depth}")
        if not cache.has_room(size):
            raise RuntimeError(f"a cache of {cache.capacity} slots is too small for {max(cache.host_lengths)} + {size}")


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


def _spread(rows: Float[Tensor, "rows dim"], at: Bool[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes dim"]:
    """Return `rows` at the true entries of `at`, and zeros at the others."""
    if len(rows) == at.numel():
        return rows.view(*at.shape, rows.shape[-1])
    spread = rows.new_zeros(*at.shape, rows.shape[-1])
    spread[at] = rows
    return spread
