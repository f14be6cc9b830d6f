"""The mask function that `transformers` calls when a model builds its attention mask.

The model's rule decides which positions a position sees (causal, a sliding window, chunks). The tree decides which
nodes are on a node's path. A node sees what both allow:

    slots      0   1   2   3   4   5   6        window of 3, prefix of 4, nodes at positions 4, 5, 5
    positions  0   1   2   3   4   5   5
    node 5a    .   .   .   x   x   x   .
    node 5b    .   .   .   x   x   .   x

`TreeCache.get_query_offset` gives transformers the forward's `AttentionContext`, which it passes on to this function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from specdec.model.attention.context import AttentionContext

MaskFunction = Callable[..., Tensor]


def tree_mask(
    *,
    q_offset: object,
    mask_function: MaskFunction,
    local_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    **_unused: object,
) -> Bool[Tensor, "batch 1 new slots"] | Float[Tensor, "batch 1 new slots"] | None:
    """Return the mask of one kind of layer in this forward, or None if a node sees all that the tree allows.

    Args:
        q_offset: the forward's `AttentionContext`. Anything else means a forward without a cache.
        mask_function: the model's rule, a function of batch, head, query position and key position.
        local_size: the window or chunk of that rule, if it has one.
        dtype: dtype of an additive mask, for a model that changes the mask itself.
    """
    if not isinstance(q_offset, AttentionContext):
        return None
    tree = q_offset
    everything = mask_function is causal_mask_function or (local_size is not None and local_size >= tree.cache.capacity)
    if not tree.cache.hands_out:
        if everything:
            return None
        mask = _both(tree, mask_function)
        if local_size is not None:
            tree.intervals.append(mask)
        return mask
    mask = tree.visible()[:, None] if everything else _both(tree, mask_function)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _both(tree: AttentionContext, mask_function: MaskFunction) -> Bool[Tensor, "batch 1 new slots"]:
    batch = torch.arange(len(tree.lengths), device=tree.lengths.device)[:, None, None, None]
    own, slots = tree.offsets[:, None, -tree.new :, None], tree.slot_offsets()[:, None, None]
    return tree.visible()[:, None] & mask_function(batch, torch.zeros_like(batch), own, slots)
