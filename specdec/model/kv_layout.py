"""Find out what a model keeps in its KV cache, and which of it its attention reads unchanged.

Most models attend to the keys and values that they put into the cache. Some change them in between: latent attention
caches a latent vector and expands it, DiffLlama distributes values to other heads, Doge derives a mask from them. Some
layers attend to the cache of another layer. Two forwards with a few tokens show this:

    stock      the kind of state each layer keeps: a recurrent one cannot forget the rejected branches of a tree
    recorded   the tensors each layer gives to the cache, and those each attention call gets: the same ones or others
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from specdec.errors import InputError
from specdec.model.cache import KVShape, cache_argument

_RECORDER = "specdec_layout"
_TOKENS = 3
RECURRENT = {"cache_params", "state"}  # names of the state in the outputs of models without attention


@dataclass(frozen=True)
class KVLayout:
    """The layout of a model's KV cache.

    Args:
        shapes: KV shape of each layer of the cache.
        sources: maps each attention layer that reads cached keys and values unchanged to the layer of the cache that
            holds them. A cache layer that is no source is changed by the model before it attends to it.
    """

    shapes: list[KVShape]
    sources: dict[int, int]


@torch.inference_mode()
def require_forgettable(model: PreTrainedModel) -> None:
    """Refuse a model, run as transformers runs it, that keeps more state than keys and values per token.

    Raises:
        InputError: it keeps a state that mixes tokens, or keys beside its KV cache.
        AttributeError: it keeps no KV cache at all.
    """
    out = model(input_ids=_tokens(model), use_cache=True)
    cache = out.get(cache_argument(model))
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", None)
    kept = _unforgettable(model, cache, layers or (), set(out))
    if kept:
        raise InputError(
            "target",
            expected="a model that keeps keys and values of every token, so that the rejected branches of a tree can "
            "be forgotten",
            got=f"{type(model).__name__}: {kept}",
            fix="choose a model with attention in every layer",
        )
    if layers is None:
        raise AttributeError("it keeps no KV cache")


def _unforgettable(model: PreTrainedModel, cache: Any, layers: Sequence[Any], outputs: set[str]) -> str:
    """Describe what a model keeps besides keys and values per token; "" if that is nothing.

    Args:
        model: as transformers runs it.
        cache: the cache of one forward, with the `layers`; None if the forward gave none.
        layers: layers of the cache.
        outputs: names of the forward's outputs.
    """
    recurrent = [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers]
    indexed = [hasattr(layer, "update_indexer") for layer in layers]
    if any(recurrent):
        return f"{_share(recurrent)} a recurrent state, into which every token is mixed"
    if any(indexed):
        return f"{_share(indexed)} the keys of an indexer beside keys and values, which cannot forget a tree's branches"
    # flags that transformers sets on a class that cannot be rolled back, or whose cache cannot be cropped
    stateful = getattr(model, "_is_stateful", False) or getattr(type(cache), "is_croppable", True) is False
    if stateful or (not layers and RECURRENT & outputs):
        return "it keeps a recurrent or compressed state, into which tokens are mixed"
    return ""


def _share(these: Sequence[bool]) -> str:
    count = sum(these)
    return "its layers keep" if all(these) else f"{count} of its {len(these)} layers {'keep' if count > 1 else 'keeps'}"


def kv_layout(model: PreTrainedModel) -> KVLayout:
    """Return the layout of a model whose attention can be exchanged.

    Raises:
        AttributeError: its attention does not go through `AttentionInterface`.
        InputError: it ignores the positions it is given.
    """
    recorded = _record(model)
    if not recorded.calls or not recorded.written:
        raise AttributeError("its attention cannot be exchanged")
    if not recorded.told:
        raise AttributeError("its layers do not hand on to the attention function what the forward is called with")
    _require_positions(model, recorded)
    sources: dict[int, int] = {}
    changed: set[int] = set()
    for attention, key, value, mask, last in recorded.calls:
        of = [i for i, (k, v) in recorded.written.items() if _same(k, key) and _same(v, value)]
        untouched = mask is None or any(_same(mask, made) for made in recorded.masks)
        if of and untouched and attention is not None and sources.get(attention, of[-1]) == of[-1]:
            sources[attention] = of[-1]
        else:
            changed.update([*of, *([] if last is None else [last])])
            if attention in sources:  # a layer that runs several times, each time with other keys
                changed.add(sources[attention])
    sources = {attention: source for attention, source in sources.items() if source not in changed}
    count = max(recorded.written) + 1
    nothing = torch.empty(1, 0, 0, 0)
    states = [recorded.written.get(i, (nothing, nothing)) for i in range(count)]
    return KVLayout([(k.shape[1], k.shape[3], v.shape[3]) for k, v in states], sources)


@dataclass(eq=False)
class _Recording(Cache):
    """A cache that only records what it is given, in order.

    Args:
        written: keys and values that each layer put into the cache.
        calls: layer, key, value and mask of each attention call, and the cache layer that was written last before it.
        masks: masks that were made.
        last: the cache layer that was written last.
        told: whether every attention call got the keyword argument `tree` of the forward.
        length: the number of tokens it claims to hold.
    """

    written: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    calls: list[tuple[int | None, Tensor, Tensor, Tensor | None, int | None]] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    last: int | None = None
    told: bool = True
    length: int = 0

    def __post_init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object) -> Any:
        self.written[layer_idx], self.last = (key_states, value_states), layer_idx
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        return self

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        tree: object = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        self.told &= tree is self
        self.calls.append((getattr(module, "layer_idx", None), key, value, attention_mask, self.last))
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    def mask(self, dtype: torch.dtype = torch.float32, device: Any = "cpu", **_: object) -> Tensor:
        mask = torch.full((1, 1, _TOKENS, _TOKENS), torch.finfo(dtype).min, dtype=dtype).triu(1)
        self.masks.append(mask.to(device))
        return self.masks[-1]


@torch.inference_mode()
def _record(model: PreTrainedModel, length: int = 0) -> _Recording:
    """Run one forward at positions 0, 1, 2, with a cache that claims to hold `length` tokens."""
    recorded = _Recording(length=length)
    tokens = _tokens(model)
    with _attention(model, recorded):
        positions = torch.arange(_TOKENS, device=model.device)[None]
        inputs = {cache_argument(model): recorded, "tree": recorded}
        model(input_ids=tokens, position_ids=positions, use_cache=True, **inputs)
    return recorded


def _require_positions(model: PreTrainedModel, recorded: _Recording) -> None:
    try:
        moved = _record(model, length=_TOKENS)
    except Exception:  # it uses the length in another way, for which the length 0 of `TreeCache` is right
        return
    first = min(recorded.written)
    if not torch.allclose(recorded.written[first][0], moved.written[first][0], rtol=1e-3, atol=1e-5):
        raise InputError(
            "target",
            expected="a model that takes `position_ids`, so that nodes of a tree at one depth share a position",
            got=f"{type(model).__name__}, which counts positions by the length of its cache",
            fix="choose another model",
        )


@contextmanager
def _attention(model: PreTrainedModel, recorded: _Recording) -> Iterator[None]:
    before = model.config._attn_implementation
    AttentionInterface.register(_RECORDER, recorded.attend)
    AttentionMaskInterface.register(_RECORDER, recorded.mask)
    model.set_attn_implementation(_RECORDER)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _tokens(model: PreTrainedModel) -> Tensor:
    known = model.config.get_text_config().vocab_size
    return torch.arange(1, _TOKENS + 1, device=model.device)[None] % known


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
