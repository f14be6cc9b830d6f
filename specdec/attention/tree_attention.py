"""The attention function that `transformers` calls in every layer.

Registered under `ATTENTION_NAME` with `AttentionInterface`; the keyword `tree=AttentionContext` given to
`model(...)` reaches it through the model's own keyword arguments. No modeling file is patched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from specdec.attention.context import AttentionContext
from specdec.attention.dense import masked_attention
from specdec.attention.protocol import BlockKeys, Keys, Out, Query, merge

ATTENTION_NAME = "specdec_tree"


def tree_attention(
    module: torch.nn.Module,
    query: Query,
    key: BlockKeys,
    value: BlockKeys,
    attention_mask: None,
    *,
    tree: AttentionContext,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: object,
) -> tuple[Tensor, None]:
    """Attention of the new nodes to the committed prefix and to their ancestors in the block.

    query [batch heads new dim]; key and value [batch kv_heads new dim]: the new nodes' own, already
    written to the cache by `TreeCache.update`. Returns [batch new heads dim] as `transformers` expects.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    keys, values = tree.cache.layer(module.layer_idx)  # type: ignore[arg-type]
    window = sliding_window if sliding_window is not None and sliding_window < tree.cache.capacity else None
    flash_can = window is None and softcap is None and s_aux is None
    if flash_can and tree.kernel.supports(query, keys, values):
        out = _prefix_and_block(tree, query, key, value, scale, keys, values)
    else:
        out, _ = masked_attention(query, keys, values, tree.visible(window), scale, softcap, s_aux)
    return out.to(query.dtype).transpose(1, 2), None


def _prefix_and_block(
    tree: AttentionContext, query: Query, key: BlockKeys, value: BlockKeys, scale: float, keys: Keys, values: Keys
) -> Out:
    if tree.block == 1:
        return tree.kernel.prefix(query, keys, values, tree, scale)[0]
    if tree.block > tree.new:  # part of the block was cached by an earlier forward
        key, value = tree.cache.block_of(keys, tree.block), tree.cache.block_of(values, tree.block)
    if tree.mask is None:
        out, lse = tree.kernel.causal(query, key, value, scale)
    else:
        out, lse = masked_attention(query, key, value, tree.mask, scale)
    if not tree.prefix:
        return out
    return merge(*tree.kernel.prefix(query, keys, values, tree, scale), out, lse)


def _no_mask(*_: object, **__: object) -> None:
    """The tree brings its own mask; the model need not build one."""


AttentionInterface.register(ATTENTION_NAME, tree_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
