"""The reference kernel: masked products in fp32. Slow and simple, and correct for every layer.

It also computes the block part of tree attention under a tree mask, and all layers that no flash kernel can: sliding
windows, soft caps, attention sinks, unsupported dtypes or head sizes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.protocol import Keys, Lse, Out, Query, Values, fold_heads


def masked_attention(
    query: Query,
    keys: Keys,
    values: Values,
    mask: Bool[Tensor, "batch new slots"] | Bool[Tensor, "batch any new slots"] | Float[Tensor, "batch any new slots"],
    scale: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> tuple[Out, Lse]:
    """Compute attention of every query to the keys that its mask row allows, in fp32 or more.

    A query that may see no key gets zeros, and a log-sum-exp of minus infinity.

    Args:
        query: of the new nodes.
        keys: all keys.
        values: all values.
        mask: the visible keys, for all heads or for each (`any` is 1 or heads). A float mask is added to the scores.
        scale: factor of the scores.
        softcap: scores become softcap * tanh(scores / softcap) (arXiv 2408.00118).
        sinks: one logit per head that takes probability and contributes no value (arXiv 2508.10925).
    """
    batch, heads, new, _ = query.shape
    kv_heads = keys.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = fold_heads(query, kv_heads).to(wide) @ keys.to(wide).transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = mask[:, None] if mask.dim() == 3 else mask
    scores = scores.view(batch, heads, new, -1)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask.to(wide)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(wide)[None, :, None].expand_as(lse))
    weights = (
        (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp().view(batch, kv_heads, -1, keys.shape[2])
    )
    return (weights @ values.to(wide)).view(batch, heads, new, -1), lse


class Dense:
    """Uses masked products, on any device. See `masked_attention`."""

    name = "dense"
    on_host = False

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        return True

    def prefix(
        self, query: Query, keys: Keys, values: Values, context: AttentionContext, scale: float
    ) -> tuple[Out, Lse]:
        slots = torch.arange(keys.shape[2], device=keys.device)
        mask = (slots < context.seen[:, None])[:, None].expand(-1, query.shape[2], -1)
        return masked_attention(query, keys, values, mask, scale)

    def causal(self, query: Query, keys: Keys, values: Values, scale: float) -> tuple[Out, Lse]:
        new = query.shape[2]
        mask = torch.ones(new, new, dtype=torch.bool, device=query.device).tril().expand(query.shape[0], -1, -1)
        return masked_attention(query, keys, values, mask, scale)
