"""Queries that a model scales by their position.

In layers without rope, Llama 4 scales queries up with their position (arXiv 2501.19399), which it counts from the
length of the cache. For a tree, a batch of unequal rows or a captured graph, that is not a node's position. Other
models scale by `position_ids`, which is correct unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.protocol import Query


def at_own_positions(module: Any, query: Query, tree: AttentionContext) -> Query:
    """Return the query as it would be if the layer used each node's position. The layer counted from 0, the length that
    `TreeCache` gave."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return query
    counted = torch.arange(tree.new, device=query.device)
    change = _scale(module, tree.offsets[:, -tree.new :]) / _scale(module, counted)
    return (query * change[:, None, :, None]).to(query.dtype)


def _scale(module: Any, positions: Tensor) -> Tensor:
    steps = torch.floor((positions.float() + 1.0) / module.floor_scale)
    return torch.log1p(steps) * module.attn_scale + 1.0
