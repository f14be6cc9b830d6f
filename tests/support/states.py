"""States of a batch, as drafters meet them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec.decoding.protocols import Kept


def kept(path: Sequence[Sequence[int]]) -> Kept:
    """Return kept nodes for drafters that do not read the target's features."""
    nodes = torch.tensor(path)
    return Kept(nodes, torch.empty(*nodes.shape, 0))
