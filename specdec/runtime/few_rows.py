"""y = x W^T + b for a few rows of x and a large fp32 W, on a CPU (`few_rows.cpp`).

A row's result does not depend, bit for bit, on how many rows travel with it.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from specdec.runtime.build import load_library

MAX_ROWS = 128  # beyond, the library's blocked product wins (and its rounding may depend on the row count)


class _Matrix(ctypes.Structure):  # as in few_rows.cpp
    _fields_ = [("w", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("n", ctypes.c_int64)]


@functools.cache
def kernel() -> ctypes._CFuncPtr:
    """The compiled function; built at the first call.

    Raises:
        BuildError: see `load_library`.
    """
    function = load_library(Path(__file__).with_name("few_rows.cpp")).few_rows
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, number, pointer, pointer, number, number]
    function.restype = None
    return function


class FewRowLinear(torch.nn.Module):
    """An `nn.Linear` (fp32, CPU) computed with `few_rows.cpp` for up to MAX_ROWS rows.

    Shares the weight and bias of `linear`; everything the kernel does not do goes to `F.linear`. The
    weights are read in place, so their values may change, but they must not move.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if self.bias is None else self.bias.data_ptr()
        self._matrix = _Matrix(self.weight.data_ptr(), None, bias, self.out_features)
        self._address = ctypes.addressof(self._matrix)
        self._kernel = kernel()

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = math.prod(x.shape[:-1])
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not 0 < rows <= MAX_ROWS or x.dtype is not torch.float32 or differentiable or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], self.out_features)
        out = ctypes.c_void_p(y.data_ptr())
        self._kernel(x.data_ptr(), rows, self.in_features, ctypes.addressof(out), self._address, 1, 0)
        return y

    @staticmethod
    def covers(module: torch.nn.Module) -> bool:
        """Whether this very class of module, dtype and device is one the kernel computes."""
        return (
            type(module) is torch.nn.Linear
            and module.weight.dtype is torch.float32
            and module.weight.device.type == "cpu"
            and module.weight.is_contiguous()
        )
