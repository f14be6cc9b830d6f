"""PyTorch's flash kernel for CPUs. It returns (out, lse), as flash-attn does on CUDA."""

from __future__ import annotations

import torch

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.protocol import Keys, Lse, Out, Query, Values, fold_heads

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class AtenFlash:
    """Uses PyTorch's flash kernel on a CPU."""

    name = "aten_flash"
    on_host = True

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        return query.device.type == "cpu" and query.is_floating_point() and keys.shape[-1] == values.shape[-1]

    def prefix(
        self, query: Query, keys: Keys, values: Values, context: AttentionContext, scale: float
    ) -> tuple[Out, Lse]:
        batch, heads, new, dim = query.shape
        folded = fold_heads(query, keys.shape[1])
        lengths = context.host_seen
        if min(lengths) == max(lengths):
            out, lse = _attend(folded, keys, values, lengths[0], scale)
        else:  # the kernel takes no lengths per row: one call per row, each on its own slice
            rows = [
                _attend(folded[r : r + 1], keys[r : r + 1], values[r : r + 1], length, scale)
                for r, length in enumerate(lengths)
            ]
            out, lse = torch.cat([o for o, _ in rows]), torch.cat([s for _, s in rows])
        return out.reshape(batch, heads, new, dim), lse.reshape(batch, heads, new)

    def causal(self, query: Query, keys: Keys, values: Values, scale: float) -> tuple[Out, Lse]:
        groups = query.shape[1] // keys.shape[1]  # causal rows cannot be folded: each sees other keys
        out, lse = _flash(
            query, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), 0.0, True, scale=scale
        )
        return out, lse


def _attend(query: Query, keys: Keys, values: Values, length: int, scale: float) -> tuple[Out, Lse]:
    if not length:  # the kernel divides by the number of keys
        return torch.zeros_like(query), query.new_full(
            query.shape[:-1], -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32)
        )
    out, lse = _flash(query, keys[:, :, :length], values[:, :, :length], 0.0, False, scale=scale)
    return out, lse
