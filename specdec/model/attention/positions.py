"""Queries that a model scales by their position.

Llama 4 makes the queries of its layers without rope larger the further on they stand (arXiv 2501.19399), and counts
positions from the length of the cache: for a tree, a batch of unequal rows or a captured graph that is not where a
node stands. Other models scale by `position_ids`, which is right as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.protocol import Query


def at_own_positions(module: Any, query: Query, tree: AttentionContext) -> Query:
    """The query as it would be if the layer knew each node's position; `TreeCache` told it that the first is 0."""
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return query
    counted = torch.arange(tree.new, device=query.device)
    change = _scale(module, tree.offsets[:, -tree.new :]) / _scale(module, counted)
    return (query * change[:, None, :, None]).to(query.dtype)


def _scale(module: Any, positions: Tensor) -> Tensor:
    steps = torch.floor((positions.float() + 1.0) / module.floor_scale)
    return torch.log1p(steps) * module.attn_scale + 1.0
