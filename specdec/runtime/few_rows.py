"""y = x W^T + b for a few rows of x and a large W, on a CPU (`kernels/product.hpp`).

A row's result does not depend, bit for bit, on how many rows travel with it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from specdec.runtime import library as lib
from specdec.runtime.quantised import QuantisedLinear

MAX_ROWS = 128  # beyond, the library's blocked product is as fast (its rounding may depend on the row count)


class NotCovered(Exception):
    """Why the kernels do not know a module."""


class FewRowLinear(nn.Module):
    """An `nn.Linear` (fp32, CPU) computed with our kernel for up to MAX_ROWS rows.

    Shares the weight and bias of `linear`; everything the kernel does not do goes to `F.linear`. The
    weights are read in place, so their values may change, but they must not move.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._matrix = matrix(linear)
        self._kernel = lib.kernels().few_rows

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = math.prod(x.shape[:-1])
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not 0 < rows <= MAX_ROWS or x.dtype is not torch.float32 or differentiable or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], self.out_features)
        self._kernel(x.data_ptr(), rows, self.in_features, y.data_ptr(), self._matrix)
        return y

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Whether this very class of module, dtype and device is one the kernel computes."""
        return (
            type(module) is nn.Linear
            and module.weight.dtype is torch.float32
            and module.weight.device.type == "cpu"
            and module.weight.is_contiguous()
        )


def matrix(linear: nn.Module, start: int = 0, size: int | None = None) -> lib.Matrix:
    """The outputs `start` to `start + size` of a linear layer as the kernels read them, in place."""
    if isinstance(linear, QuantisedLinear):
        return linear.matrix(start, size)
    if not isinstance(linear, FewRowLinear) and not FewRowLinear.covers(linear):
        raise NotCovered(f"{type(linear).__name__} in {linear.weight.dtype} on {linear.weight.device}")
    weight: Tensor = linear.weight  # type: ignore[assignment]
    bias: Tensor | None = linear.bias  # type: ignore[assignment]
    bias = None if bias is None else bias[start:]
    return lib.Matrix(weight[start:].data_ptr(), None, lib.address(bias), size or linear.out_features, lib.FLOAT32)
