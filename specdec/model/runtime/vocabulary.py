"""Passes over rows as long as the vocabulary.

If the compiled kernels are available (fp32 on a CPU, a compiler), each is a single pass. Otherwise PyTorch computes
them, with the same result up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.model.runtime.build import BuildError, load_library
from specdec.model.runtime.library import address, plain
from specdec.trees.tree import PAD


def mass(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"] | None, times: float, without: Sequence[int]) -> float:
    """Return `masses` of a single row, as a Python float.

    Args:
        p: one row.
        q: one row, or None.
        times: factor of q.
        without: tokens left out; must not contain -1.
    """
    library = _library(p, q, dims=1)
    if library is None or not all(0 <= token < p.numel() for token in without):
        one = torch.tensor([times], dtype=torch.float64, device=p.device)
        gone = torch.tensor([[PAD, *without]], device=p.device)
        return float(masses(p[None], None if q is None else q[None], one, gone))
    return _mass(library, p, q, times, without)


def masses(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"] | None = None,
    times: Float[Tensor, " rows"] | None = None,
    without: Int[Tensor, "rows some"] | None = None,
) -> Float[Tensor, " rows"]:
    """Return the sum of relu(p - times q) over all tokens but those of `without`, in float64.

    Args:
        p: one distribution per row.
        q: likewise; None for the sum of p.
        times: factor of q per row.
        without: tokens left out per row; -1 is none.
    """
    library = _library(p, q)
    if library is None or not _inside(p, without):
        rest = p if q is None or times is None else leftover(p, q, times)
        return (rest if without is None else without_tokens(rest, without)).sum(-1).double()
    qs: Sequence[Tensor | None] = [None] * len(p) if q is None else q.unbind()
    each = [0.0] * len(p) if times is None else times.tolist()
    gone = [[]] * len(p) if without is None else [[t for t in row if t != PAD] for row in without.tolist()]
    rows = zip(p.unbind(), qs, each, gone, strict=True)
    return torch.tensor([_mass(library, *row) for row in rows], dtype=torch.float64)


def entropies(p: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Return -sum p log p in nats, in float64."""
    library = _library(p)
    if library is None:
        return torch.special.entr(p).sum(-1).double()
    return torch.tensor([library.entropy(row.numel(), row.data_ptr()) for row in p.unbind()], dtype=torch.float64)


def argmaxes(x: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
    """Return the (first) index of the largest value of each row; -1 if that value is infinite or the row holds
    a NaN."""
    library = _library(x)
    if library is None:
        best = x.max(-1)
        return torch.where(best.values.isfinite(), best.indices, PAD)
    index = torch.empty(len(x), dtype=torch.long)
    library.argmaxes(*x.shape, x.data_ptr(), x.stride(0), index.data_ptr())
    return index


def picks(p: Float[Tensor, "rows vocab"], u: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the first token of each row whose CDF exceeds u times the row's sum, u in [0, 1). Its probability is never
    0."""
    library = _library(p)
    if library is None:
        cdf = p.double().cumsum(-1)
        return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    rows = zip(p.unbind(), u.tolist(), strict=True)
    return torch.tensor([library.pick(row.numel(), row.data_ptr(), goal) for row, goal in rows])


def leftover(
    p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"], times: Float[Tensor, " rows"]
) -> Float[Tensor, "rows vocab"]:
    """Return relu(p - times q): the rest of p after q has been offered `times` times."""
    return torch.addcmul(p, q, times[:, None].to(p), value=-1).relu_()


def without_tokens(p: Float[Tensor, "rows vocab"], tokens: Int[Tensor, "rows some"]) -> Float[Tensor, "rows vocab"]:
    """Return p with 0 at the tokens; -1 is none."""
    one_of_them = tokens.amax(1, keepdim=True)
    index = torch.where(tokens == PAD, one_of_them, tokens).clamp(min=0)
    return p.scatter(1, index, torch.where(one_of_them == PAD, p.gather(1, index), 0))


def _mass(library: ctypes.CDLL, p: Tensor, q: Tensor | None, times: float, without: Sequence[int]) -> float:
    tokens = (ctypes.c_int64 * len(without))(*without) if without else None
    return library.mass(p.numel(), p.data_ptr(), address(q), times, tokens, len(without))


def _inside(p: Tensor, tokens: Tensor | None) -> bool:
    return tokens is None or not tokens.numel() or PAD <= int(tokens.min()) <= int(tokens.max()) < p.shape[-1]


def _library(p: Tensor, q: Tensor | None = None, dims: int = 2) -> ctypes.CDLL | None:
    """Return the kernels if they may read `p` and `q`, else None.

    Both must be non-empty rows of fp32 in this process's memory, of one shape with `dims` dimensions. PyTorch computes
    everything else, or raises.
    """
    for x in (p, q):
        if x is not None and not (
            plain(x) and x.dim() == dims and x.shape == p.shape and x.numel() and x.stride(-1) == 1
        ):
            return None
    return _kernels()


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    try:
        library = load_library(Path(__file__).with_name("kernels") / "vocabulary.cpp")
    except BuildError:  # the runtime has already warned
        return None
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.mass.argtypes = [number, pointer, pointer, real, pointer, number]
    library.entropy.argtypes = [number, pointer]
    library.argmaxes.argtypes = [number, number, pointer, number, pointer]
    library.pick.argtypes = [number, pointer, real]
    library.mass.restype = library.entropy.restype = real
    library.pick.restype, library.argmaxes.restype = number, None
    return library
