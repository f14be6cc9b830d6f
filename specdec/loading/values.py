"""Weights that are numbers."""

from __future__ import annotations

import torch
from torch import nn

from specdec.errors import InputError


def require_finite_weights(model: nn.Module, name: str, option: str) -> None:
    """Read every weight once.

    Raises:
        InputError: names the first weight with NaN or infinity.
    """
    for key, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.numel() == 0:
            continue
        values = weight.detach() if weight.element_size() > 1 else weight.detach().float()  # no extrema of 8-bit floats
        low, high = torch.aminmax(values)  # both are NaN if any value is
        if not torch.isfinite(torch.stack([low, high])).all():
            raise InputError(
                option, expected="finite weights", got=f"{name!r}, whose {key} holds NaN or infinity",
                fix="download it again, or load it in a wider dtype (float32)",
            )  # fmt: skip
