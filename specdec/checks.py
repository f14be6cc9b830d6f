"""Conditions on tensors: looked at where that is free, asserted on the device where it would mean waiting."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from specdec.errors import InputError


def holds(ok: Bool[Tensor, "*shape"], message: str) -> bool:
    """Whether all hold, if that can be known without waiting; otherwise True, and the device asserts it."""
    if ok.is_cpu:
        return bool(ok.all())
    torch._assert_async(ok.all(), message)
    return True


def require_finite(ok: Bool[Tensor, "batch nodes"]) -> None:
    """Refuse a target whose output is not a number.

    Raises:
        InputError: and names row and node.
    """
    if not holds(ok, "target_probs: not finite"):
        where = "at row {}, node {}".format(*(~ok).nonzero()[0].tolist())
        fix = "look for an overflow in the target (try target.dtype=float32)"
        raise InputError("target_probs", expected="finite probabilities", got=f"NaN or infinity {where}", fix=fix)
