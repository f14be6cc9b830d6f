"""Slow definitions that the fast ones are compared with."""

from __future__ import annotations

from torch import Tensor


def brute_force_bound(p: Tensor, q: Tensor, k: int) -> float:
    """1 + min over every set H of (P(H) - Q(H)^k), arXiv 2502.18779."""
    sets = [[token for token in range(len(p)) if number >> token & 1] for number in range(1 << len(p))]
    return 1 + min(float(p[inside].sum()) - float(q[inside].sum()) ** k for inside in sets)
