"""Write new keys and values into a cache, as one operator that a compiler does not look into.

With `scatter_` in its graph, inductor copies a layer's whole cache in every forward.
"""

from __future__ import annotations

import torch
from torch import Tensor


def write(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    """Write the keys and values of new nodes, in place.

    Args:
        keys: all slots of a layer, [batch kv_heads slots dim].
        values: likewise.
        key: of the new nodes, [batch kv_heads new dim].
        value: likewise.
        slots: where they belong, [batch 1 new 1].
    """
    if torch.compiler.is_compiling():
        _operator(keys, values, key, value, slots)
    else:
        _write(keys, values, key, value, slots)


def _write(keys: Tensor, values: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> None:
    keys.scatter_(2, slots.expand_as(key), key)
    values.scatter_(2, slots.expand_as(value), value)


_operator = torch.library.custom_op(
    "specdec::write",
    _write,
    mutates_args=("keys", "values"),
    schema="(Tensor(a!) keys, Tensor(b!) values, Tensor key, Tensor value, Tensor slots) -> ()",
)
