"""The interface of a kernel: two attentions, unmasked and causal, that also return their log-sum-exp."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.model.attention.context import AttentionContext

Query = Float[Tensor, "batch heads new dim"]
Keys = Float[Tensor, "batch kv_heads slots dim"]
Values = Float[Tensor, "batch kv_heads slots value_dim"]
BlockKeys = Float[Tensor, "batch kv_heads block dim"]
BlockValues = Float[Tensor, "batch kv_heads block value_dim"]
Out = Float[Tensor, "batch heads new value_dim"]
Lse = Float[Tensor, "batch heads new"]  # natural logarithm


@runtime_checkable
class PrefixKernel(Protocol):
    """Attention to a committed prefix, and causal attention."""

    name: str
    on_host: bool  # whether it reads lengths on the host, so that forwards with it are never captured as graphs

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        """Whether the kernel supports dtype, device and head size. If not, `dense` computes the layer."""
        ...

    def prefix(
        self, query: Query, keys: Keys, values: Values, context: AttentionContext, scale: float
    ) -> tuple[Out, Lse]:
        """Compute attention of every query of row b to the first `context.seen[b]` slots of the cache.

        A row that sees none has a log-sum-exp of minus infinity and a finite output.

        Args:
            query: of the new nodes.
            keys: all slots.
            values: all slots.
            context: the forward's context.
            scale: factor of the scores.
        """
        ...

    def causal(self, query: Query, keys: Keys, values: Values, scale: float) -> tuple[Out, Lse]:
        """Compute causal attention: query i sees keys 0..i. There are as many keys as queries.

        Args:
            query: of the new nodes.
            keys: of the new nodes.
            values: of the new nodes.
            scale: factor of the scores.
        """
        ...


@runtime_checkable
class TreeKernel(Protocol):
    """Attention to the committed prefix and to the block's ancestors at once."""

    name: str
    on_host: bool

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        """See `PrefixKernel`."""
        ...

    def attend(
        self,
        query: Query,
        keys: Keys,
        values: Values,
        context: AttentionContext,
        scale: float,
        mask: Tensor | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Out | None:
        """Compute attention of the new nodes to all slots that they see.

        Args:
            query: of the new nodes.
            keys: all slots; those of the block are written.
            values: likewise.
            context: the forward's context.
            scale: factor of the scores.
            mask: the layer's own mask, from `tree_mask` or changed by the model; None for all that the tree allows.
            softcap: see `masked_attention`.
            sinks: likewise.

        Returns:
            None if the kernel cannot read this mask; `dense` computes the layer then.
        """
        ...


Kernel = PrefixKernel | TreeKernel


def fold_heads(query: Query, kv_heads: int) -> Float[Tensor, "batch kv_heads rows dim"]:
    """Turn the query heads that share a KV head into rows of one query: grouped-query attention without a copy of K and
    V.

    Valid if all heads of a group see the same keys.
    """
    batch, heads, new, dim = query.shape
    return query.reshape(batch, kv_heads, heads // kv_heads * new, dim)


def merge(out_a: Out, lse_a: Lse, out_b: Out, lse_b: Lse) -> Out:
    """Merge attention over two disjoint sets of keys into attention over their union.

    Args:
        out_a: output over the first set.
        lse_a: its log-sum-exp.
        out_b: output over the second set.
        lse_b: its log-sum-exp.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse_a - lse).exp()[..., None] + out_b * (lse_b - lse).exp()[..., None]
