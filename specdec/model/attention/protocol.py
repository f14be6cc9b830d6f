"""What a kernel is: two unmasked-or-causal attentions that also return their log-sum-exp."""

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
    name: str
    on_host: bool  # reads lengths on the host, so that no forward with it is captured as a graph

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        """Whether dtype, device and head size are this kernel's; otherwise `dense` serves the layer."""
        ...

    def prefix(
        self, query: Query, keys: Keys, values: Values, context: AttentionContext, scale: float
    ) -> tuple[Out, Lse]:
        """Every query of row b sees the first `context.seen[b]` slots of the cache. The log-sum-exp of a row that sees
        none is minus infinity, its output finite."""
        ...

    def causal(self, query: Query, keys: Keys, values: Values, scale: float) -> tuple[Out, Lse]:
        """Query i sees keys 0..i; as many keys as queries."""
        ...


def fold_heads(query: Query, kv_heads: int) -> Float[Tensor, "batch kv_heads rows dim"]:
    """The query heads that share a KV head become rows of one query: grouped-query attention without
    a copy of K and V. Possible wherever all heads of a group see the same keys."""
    batch, heads, new, dim = query.shape
    return query.reshape(batch, kv_heads, heads // kv_heads * new, dim)


def merge(out_a: Out, lse_a: Lse, out_b: Out, lse_b: Lse) -> Out:
    """Attention over the union of two disjoint sets of keys, from attention over each."""
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse_a - lse).exp()[..., None] + out_b * (lse_b - lse).exp()[..., None]
