"""Kernels by name, and the default for each device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from specdec.errors import InputError
from specdec.model.attention.aten_flash import AtenFlash
from specdec.model.attention.dense import Dense
from specdec.model.attention.flash_attn import FlashAttn
from specdec.model.attention.protocol import PrefixKernel

KERNELS: dict[str, Callable[[], PrefixKernel]] = {k.name: k for k in (AtenFlash, FlashAttn, Dense)}


def choose_kernel(name: str, device: torch.device) -> PrefixKernel:
    """Return the kernel called `name`. `auto` takes the fastest one that is installed for the device.

    Raises:
        InputError: an unknown name, a kernel of another device, or flash-attn not installed.
    """
    if name == "auto":
        if device.type == "cuda" and find_spec("flash_attn") is not None:
            return FlashAttn()
        return AtenFlash() if device.type == "cpu" else Dense()
    if name not in KERNELS:
        choices = ", ".join(["auto", *KERNELS])
        raise InputError("target.kernel", expected=f"one of {choices}", got=repr(name), fix="use kernel=auto")
    needs = {"aten_flash": "cpu", "flash_attn": "cuda"}.get(name, device.type)
    kernel = KERNELS[name]()
    if needs != device.type:
        raise InputError(
            "target.kernel", expected=f"device {needs} for kernel={name}", got=device.type, fix="use kernel=auto"
        )
    return kernel
