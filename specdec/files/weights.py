"""Weights that somebody else may have written, read within bounds: tensors and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specdec.files.checked import require_regular

LFS = b"version https://git-lfs"
SAFE = ".safetensors"


class PickledCodeError(ValueError):
    """A pickle that holds more than tensors, and would run code."""


def tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file, without its tensors, or in a pickle. Raises as `read_tensors`."""
    if file.suffix != SAFE:
        return list(_unpickled(file))
    _require_file(file)
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def tensor_types(file: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file, in safetensors' words (F32, BF16). Raises as `read_tensors`."""
    _require_file(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def read_tensors(file: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; names: only these.

    A header that says more than its file holds is refused before anything is allocated for it.

    Raises:
        OSError: it cannot be read.
        ValueError: a git LFS pointer, a torn file, a name that is not there; `PickledCodeError`.
    """
    if file.suffix != SAFE:
        found = _unpickled(file)
        wanted = found if names is None else names
        if missing := [name for name in wanted if name not in found]:
            raise ValueError(f"no tensor {missing[0]!r}")
        return {name: found[name] for name in wanted}
    _require_file(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError: names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"NaN or infinity in {name!r}")


def _require_file(file: Path) -> None:
    """Refuse what cannot be weights: no regular file, an empty one, or what git keeps in place of a large file."""
    require_regular(file)
    with file.open("rb") as data:
        begin = data.read(len(LFS))
    if not begin:
        raise ValueError("an empty file")
    if begin == LFS:
        raise ValueError("a git LFS pointer, not the file itself")


def _unpickled(file: Path) -> dict[str, Tensor]:
    _require_file(file)
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickledCodeError("a pickle that would run code") from error
    except OSError:
        raise
    except Exception as error:  # a torn pickle raises of nearly every kind
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(state, dict):
        raise ValueError(f"no state dict, but {type(state).__name__}")
    found = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    for name, tensor in found.items():
        _require_plain(name, tensor)
    return found


def _require_plain(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is larger than what the file holds of it: strides of 0, or no memory at all."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name!r} is larger than what is stored of it")
