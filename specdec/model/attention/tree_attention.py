"""The attention function that `transformers` calls in every layer.

It is registered under `ATTENTION_NAME` with `AttentionInterface`. The keyword `tree=AttentionContext` given to
`model(...)` reaches it through the model's own keyword arguments. No modeling file is patched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.dense import masked_attention
from specdec.model.attention.masks import tree_mask
from specdec.model.attention.positions import at_own_positions
from specdec.model.attention.protocol import BlockKeys, BlockValues, Query, TreeKernel
from specdec.model.attention.two_parts import prefix_and_block

ATTENTION_NAME = "specdec_tree"


def tree_attention(
    module: torch.nn.Module,
    query: Query,
    key: BlockKeys,
    value: BlockValues,
    attention_mask: Tensor | None,
    *,
    tree: AttentionContext,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: object,
) -> tuple[Tensor, None]:
    """Compute attention of the new nodes to the committed prefix and to their ancestors in the block.

    Args:
        module: the attention layer; its `layer_idx` identifies its keys and values in the cache.
        query: of the new nodes, [batch heads new dim].
        key: of the new nodes, already written to the cache by `TreeCache.update`. Of all slots, if the model changes
            the cached keys before it attends to them (latent attention).
        value: likewise.
        attention_mask: the mask that `tree_mask` gave the model, or what the model made of it; None for all that the
            tree allows.
        tree: the new nodes and their positions.
        scaling: factor of the scores; None for 1 / sqrt(dim).
        softcap: see `masked_attention`.
        s_aux: sinks, see `masked_attention`.

    Returns:
        [batch new heads dim], as `transformers` expects.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    mask, query = attention_mask, at_own_positions(module, query, tree)
    stored = tree.cache.stored(getattr(module, "layer_idx", None))
    if stored is None:
        keys, values = key, value
    else:
        keys, values = stored
        out = None
        plain = mask is None and softcap is None and s_aux is None
        if not tree.kernel.supports(query, keys, values):
            pass
        elif isinstance(tree.kernel, TreeKernel):
            out = tree.kernel.attend(query, keys, values, tree, scale, mask, softcap, s_aux)
        elif plain:
            out = prefix_and_block(tree.kernel, tree, query, keys, values, scale, (key, value))
        if out is not None:
            return out.to(query.dtype).transpose(1, 2).contiguous(), None
        keys, values = keys[:, :, : tree.slots], values[:, :, : tree.slots]
    out, _ = masked_attention(query, keys, values, tree.visible() if mask is None else mask, scale, softcap, s_aux)
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, tree_attention)
AttentionMaskInterface.register(ATTENTION_NAME, tree_mask)
