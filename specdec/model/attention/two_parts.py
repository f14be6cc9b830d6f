"""Attention over "committed prefix + block" in two parts, merged by their log-sum-exp: for kernels without a mask."""

from __future__ import annotations

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.dense import masked_attention
from specdec.model.attention.protocol import BlockKeys, BlockValues, Keys, Out, PrefixKernel, Query, Values, merge


def prefix_and_block(
    kernel: PrefixKernel,
    context: AttentionContext,
    query: Query,
    keys: Keys,
    values: Values,
    scale: float,
    block: tuple[BlockKeys, BlockValues] | None = None,
) -> Out:
    """Compute attention of the new nodes to the prefix with `kernel`, and to the block with masked products.

    Args:
        kernel: computes the prefix, and a causal block.
        context: the forward's context.
        query: of the new nodes.
        keys: all slots.
        values: all slots.
        scale: factor of the scores.
        block: keys and values of the new nodes, if they are the whole block; None to read them from the cache.
    """
    if context.block == 1:
        return kernel.prefix(query, keys, values, context, scale)[0]
    if block is None or context.block > context.new:  # an earlier forward has cached part of the block
        block = tuple(context.cache.block_of(x, context.block) for x in (keys, values))  # type: ignore[assignment]
    assert block is not None
    if context.mask is None:
        out, lse = kernel.causal(query, *block, scale)
    else:
        out, lse = masked_attention(query, *block, context.mask, scale)
    if not context.prefix:
        return out
    return merge(*kernel.prefix(query, keys, values, context, scale), out, lse)
