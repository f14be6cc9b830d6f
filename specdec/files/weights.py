"""Read untrusted weights within limits: tensors only, no code."""

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
    """Raised for a pickle that holds more than tensors and would run code."""


def tensor_names(file: Path) -> list[str]:
    """Return the names of the tensors in a file. Of a safetensors file only the header is read.

    Raises:
        OSError, ValueError: as in `read_tensors`.
    """
    if file.suffix != SAFE:
        return list(_unpickled(file))
    _require_file(file)
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def tensor_types(file: Path) -> dict[str, str]:
    """Return the type of each tensor in a safetensors file, as safetensors names it (F32, BF16).

    Raises:
        OSError, ValueError: as in `read_tensors`.
    """
    _require_file(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def read_tensors(file: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return tensors by name, on the CPU.

    A header that announces more than the file holds is refused before memory is allocated.

    Args:
        file: a safetensors file or a pickled state dict.
        names: tensors to read; None for all.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a git LFS pointer, incomplete or malformed, or lacks one of the names.
        PickledCodeError: a pickle that would run code.
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
    """Refuse tensors with NaN or infinity.

    Raises:
        ValueError: the message names the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"NaN or infinity in {name!r}")


def _require_file(file: Path) -> None:
    """Refuse files that cannot be weights: not a regular file, empty, or a git LFS pointer."""
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
    except Exception as error:  # an incomplete pickle can raise almost any exception
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(state, dict):
        raise ValueError(f"no state dict, but {type(state).__name__}")
    found = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    for name, tensor in found.items():
        _require_plain(name, tensor)
    return found


def _require_plain(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is larger than its data in the file, because of zero strides or missing storage."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name!r} is larger than what is stored of it")
