"""Observe, during one forward, which products and which attention kernel compute each layer of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from specdec.model.attention import ATTENTION_NAME
from specdec.model.attention.protocol import Kernel, PrefixKernel, TreeKernel
from specdec.model.attention.tree_attention import tree_attention
from specdec.model.runtime.few_rows import FewRowLinear
from specdec.model.runtime.packed import packed_modules
from specdec.trees.tree import TokenTree

if TYPE_CHECKING:
    from specdec.model.target import TargetModel

_OBSERVER = "specdec_observer"


@dataclass(frozen=True)
class Serving:
    """How one layer is computed.

    Args:
        layer: its number, from 0.
        attention: the attention kernel; `fused` if all layers are one call.
        products: what computes the products with its weights.
        feature: why no flash kernel is used; "" if one is.
    """

    layer: int
    attention: str
    products: str
    feature: str = ""


@torch.inference_mode()
def served(target: TargetModel) -> list[Serving]:
    """Return how each layer is computed, in a forward over a small tree behind a short prefix."""
    if target.fused is not None:
        return [Serving(layer, "fused", _products(target.model)) for layer in range(target.depth)]
    seen: dict[int, tuple[str, str]] = {}
    calls: list[str] = []
    kernel, graphs, plain = target.kernel, target.graphs, tree_attention

    def observe(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        calls.clear()
        out = plain(module, query, key, value, mask, **kwargs)
        layer = getattr(module, "layer_idx", None)
        number = layer if isinstance(layer, int) else len(seen)
        seen[number] = (calls[0], "") if calls else ("dense", _feature(query, key, value, mask, kwargs))
        return out

    AttentionInterface.register(_OBSERVER, observe)
    AttentionMaskInterface.register(_OBSERVER, AttentionMaskInterface()[ATTENTION_NAME])
    target.kernel, target.graphs = _watched(kernel, calls), None  # a replayed graph would call nothing
    target.model.set_attn_implementation(_OBSERVER)
    try:
        cache = target.new_cache(1, 8)
        tree = TokenTree.from_rows([[1, 1, 1]], [[-1, 0, 0]], target.device)
        target.prefill(cache, [[1]])
        seen.clear()
        target.forward_tree(cache, tree)
    finally:
        target.kernel, target.graphs = kernel, graphs
        target.model.set_attn_implementation(ATTENTION_NAME)
    products = _products(target.model)
    return [Serving(layer, *seen[layer][:1], products, seen[layer][1]) for layer in sorted(seen)]


def _watched(kernel: Kernel, calls: list[str]) -> Kernel:
    """Return a kernel that records its calls."""
    return _WatchedTree(kernel, calls) if isinstance(kernel, TreeKernel) else _WatchedPrefix(kernel, calls)


class _WatchedTree:
    def __init__(self, kernel: TreeKernel, calls: list[str]) -> None:
        self._kernel, self._calls, self.name, self.on_host = kernel, calls, kernel.name, kernel.on_host

    def supports(self, *args: Any) -> bool:
        return bool(self._kernel.supports(*args))

    def attend(self, *args: Any) -> Any:
        out = self._kernel.attend(*args)
        self._calls.extend([self.name] if out is not None else [])
        return out


class _WatchedPrefix:
    def __init__(self, kernel: PrefixKernel, calls: list[str]) -> None:
        self._kernel, self._calls, self.name, self.on_host = kernel, calls, kernel.name, kernel.on_host

    def supports(self, *args: Any) -> bool:
        return bool(self._kernel.supports(*args))

    def prefix(self, *args: Any) -> Any:
        self._calls.append(self.name)
        return self._kernel.prefix(*args)

    def causal(self, *args: Any) -> Any:
        self._calls.append(self.name)
        return self._kernel.causal(*args)


def _feature(query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]) -> str:
    """Name the first feature of this call that flash kernels do not support.

    Args:
        query: of the attention call.
        key: likewise.
        value: likewise.
        mask: likewise.
        kwargs: further keyword arguments of the call.
    """
    features = {
        "attention sinks": kwargs.get("s_aux") is not None,
        "a soft cap": kwargs.get("softcap") is not None,
        "a window or a mask of its own": mask is not None,
        "keys and values of two sizes": key.shape[-1] != value.shape[-1],
        f"heads of size {query.shape[-1]} in {str(query.dtype).removeprefix('torch.')}": True,
    }
    return next(name for name, there in features.items() if there)


def _products(model: torch.nn.Module) -> str:
    modules = list(model.modules())
    forms = sorted({module.form for module in packed_modules(model)})
    if forms:
        return f"few-row kernels, weights in {', '.join(forms)}"
    return "few-row kernels" if any(isinstance(module, FewRowLinear) for module in modules) else "PyTorch"
