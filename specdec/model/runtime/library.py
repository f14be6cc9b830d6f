"""The compiled kernels (`kernels/`) and their structs. The fields are described in the C++ files."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from torch import Tensor, float32, strided
from torch.nn import Parameter

from specdec.model.runtime.build import load_library

# storage formats of a matrix, numbered as in `kernels/formats.hpp`
KINDS = {
    name: number
    for number, name in enumerate(
        ("fp32", "bf16", "int8", "int4", "fp16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
    )
}

_pointer, _number = ctypes.c_void_p, ctypes.c_int64


class Matrix(ctypes.Structure):
    """A weight matrix (`kernels/formats.hpp`)."""

    _fields_ = [("w", _pointer), ("scale", _pointer), ("bias", _pointer), ("n", _number), ("kind", _number)]


class Norm(ctypes.Structure):
    """An RMSNorm (`kernels/decoder.cpp`)."""

    _fields_ = [("weight", _pointer), ("eps", ctypes.c_float)]


class Layer(ctypes.Structure):
    """The weights of a decoder layer (`kernels/decoder.cpp`)."""

    _fields_ = [
        *[(name, Norm) for name in ("before", "q_norm", "k_norm", "between")],
        ("qkv", Matrix * 3),
        ("o", Matrix),
        ("gate_up", Matrix * 2),
        ("down", Matrix),
        ("rotates", _number),
    ]


class Heads(ctypes.Structure):
    """Number and size of attention heads (`kernels/attention.hpp`)."""

    _fields_ = [("heads", _number), ("kv_heads", _number), ("dim", _number), ("scale", ctypes.c_float)]


class Decoder(ctypes.Structure):
    """A whole model (`kernels/decoder.cpp`)."""

    _fields_ = [
        ("dim", _number),
        ("inner", _number),
        ("rotary", _number),
        ("heads", Heads),
        ("final", Norm),
        ("output", Matrix),
        ("layers", ctypes.POINTER(Layer)),
    ]


class Texts(ctypes.Structure):
    """The texts that the nodes of a forward see (`kernels/attention.hpp`)."""

    _fields_ = [
        ("batch", _number),
        ("block", _number),
        ("nodes", _number),
        ("lengths", _pointer),
        ("mask", _pointer),
        ("capacity", _number),
        ("rows", _number),
        ("at", _pointer),
    ]


class Forward(ctypes.Structure):
    """The inputs and outputs of one forward (`kernels/decoder.cpp`)."""

    _fields_ = [
        ("texts", Texts),
        ("first", _number),
        ("last", _number),
        ("x", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
        ("cache", _pointer),
        ("hidden", _pointer),
        ("kept", _number),
        ("keep", _pointer),
        ("logits", _pointer),
    ]


@functools.cache
def kernels() -> ctypes.CDLL:
    """Return the compiled library; the first call builds it.

    Raises:
        BuildError: see `load_library`.
    """
    library = load_library(Path(__file__).with_name("kernels") / "decoder.cpp")
    library.few_rows.argtypes = [_pointer, _number, _number, _pointer, ctypes.POINTER(Matrix)]
    library.decode.argtypes = [ctypes.POINTER(Decoder), ctypes.POINTER(Forward)]
    library.widen_rows.argtypes = [ctypes.POINTER(Matrix), _number, _number, _pointer, _pointer]
    library.few_rows.restype = library.decode.restype = library.widen_rows.restype = None
    library.lanes.restype = _number
    return library


def plain(tensor: Any) -> bool:
    """Whether the kernels may read the memory of `tensor`: fp32 numbers in this process, stored unchanged.

    A subclass (a DTensor) keeps them elsewhere, a sparse layout stores them differently, and a negative view changes
    their signs on reading.
    """
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.dtype is float32
        and tensor.is_cpu
        and tensor.layout is strided
        and not tensor.is_neg()
    )


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's data; None for None."""
    return None if tensor is None else tensor.data_ptr()
