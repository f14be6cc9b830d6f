"""y = x W^T + b for a few rows of x and a large W, on a CPU (`kernels/product.hpp`).

A row's result is bit for bit the same, however many rows are computed together.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from specdec.model.runtime import library as lib
from specdec.model.runtime.packed import PackedLinear

MAX_ROWS = 128  # beyond it, PyTorch's blocked product is as fast (its rounding may depend on the row count)


class NotCovered(Exception):
    """A reason why the kernels do not cover a module."""


class FewRowLinear(nn.Module):
    """An `nn.Linear` (fp32, CPU) computed with our kernel for up to MAX_ROWS rows.

    Shares weight and bias of `linear` and reads them in place. `F.linear` computes everything that the kernel does not,
    and raises what `nn.Linear` raises. It is also used once the weights have been moved, converted or exchanged.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._matrix = matrix(linear)
        self._size = self.weight.shape
        self._kernel = lib.kernels().few_rows

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = math.prod(x.shape[:-1])
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if torch.compiler.is_compiling() or differentiable or not (0 < rows <= MAX_ROWS and self._takes(x)):
            return F.linear(x, self.weight, self.bias)
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], self.out_features)
        self._kernel(x.data_ptr(), rows, self.in_features, y.data_ptr(), self._matrix)
        return y

    def _takes(self, x: Tensor) -> bool:
        """Whether the kernel may read the input, and whether the weights are where they were. Reads the weights from
        the dict of parameters, because an attribute of a module costs as much as all checks of a tensor."""
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        return (
            lib.plain(x)
            and x.dim() > 0
            and x.shape[-1] == self.in_features
            and weight is not None
            and lib.plain(weight)
            and weight.shape == self._size
            and weight.data_ptr() == self._matrix.w
            and weight.is_contiguous()
            and (bias is None or lib.plain(bias))
            and lib.address(bias) == self._matrix.bias
            and (bias is None or (bias.shape == self._size[:1] and bias.is_contiguous()))
        )

    @staticmethod
    def covers(module: nn.Module) -> bool:
        """Whether the kernel computes exactly this class of module, dtype and device."""
        return (
            type(module) is nn.Linear
            and lib.plain(module.weight)
            and module.weight.is_contiguous()
            and (module.bias is None or (lib.plain(module.bias) and module.bias.is_contiguous()))
        )


def matrix(linear: nn.Module, start: int = 0, size: int | None = None) -> lib.Matrix:
    """Return the outputs `start` to `start + size` of a linear layer in the form that the kernels read, in place.

    Raises:
        NotCovered: the kernels cannot read its weights.
    """
    if isinstance(linear, PackedLinear):
        return linear.matrix(start, size)
    if not isinstance(linear, FewRowLinear) and not FewRowLinear.covers(linear):
        raise NotCovered(f"{type(linear).__name__} in {linear.weight.dtype} on {linear.weight.device}")
    weight: Tensor = linear.weight  # type: ignore[assignment]
    bias: Tensor | None = linear.bias  # type: ignore[assignment]
    bias = None if bias is None else bias[start:]
    return lib.Matrix(
        weight[start:].data_ptr(), None, lib.address(bias), size or linear.out_features, lib.KINDS["fp32"]
    )
