"""Kernels by name, and the default for each device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch

from specdec.errors import InputError
from specdec.model.attention.aten_flash import AtenFlash
from specdec.model.attention.dense import Dense
from specdec.model.attention.flash_attn import FlashAttn
from specdec.model.attention.protocol import Kernel
from specdec.model.attention.tree_flash import TreeFlash, interpreted, lacking

KERNELS: dict[str, Callable[[], Kernel]] = {k.name: k for k in (AtenFlash, TreeFlash, FlashAttn, Dense)}
DEVICES = {AtenFlash.name: "cpu", TreeFlash.name: "cuda", FlashAttn.name: "cuda"}  # the others run on any


def choose_kernel(name: str, device: torch.device) -> Kernel:
    """Return the kernel called `name`. `auto` takes the fastest one that runs on the device.

    Raises:
        InputError: an unknown name, a kernel of another device, or its package is missing or does not work.
    """
    if name == "auto":
        return _fastest(device)
    if name not in KERNELS:
        choices = ", ".join(["auto", *KERNELS])
        raise InputError("target.kernel", expected=f"one of {choices}", got=repr(name), fix="use kernel=auto")
    kernel = KERNELS[name]()
    needs = device.type if interpreted() and name == TreeFlash.name else DEVICES.get(name, device.type)
    if needs != device.type:
        raise InputError(
            "target.kernel", expected=f"device {needs} for kernel={name}", got=device.type, fix="use kernel=auto"
        )
    if isinstance(kernel, TreeFlash):
        kernel.require_running(device)
    return kernel


def _fastest(device: torch.device) -> Kernel:
    if device.type != "cuda":
        return AtenFlash() if device.type == "cpu" else Dense()
    for name in by_speed():
        try:
            return choose_kernel(name, device)
        except InputError as error:
            warnings.warn(f"{error}: trying the next kernel", stacklevel=4)
    return Dense()


def by_speed() -> list[str]:
    """Return the kernels that are installed for CUDA, the fastest first."""
    flash = find_spec("flash_attn") is not None
    there = {TreeFlash.name: not lacking(), FlashAttn.name: flash, Dense.name: True}
    return [name for name in there if there[name]]


def slower(name: str) -> list[str]:
    """Return the kernels to try, in this order, if `name` does not compute what the stock model does."""
    names = by_speed() if DEVICES.get(name) == "cuda" else [Dense.name]
    return names[names.index(name) + 1 :] if name in names else names
