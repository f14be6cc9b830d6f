"""Numbers between host and device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers (nested lists, an array) as a tensor on `device`.

    On CUDA they are copied from pinned memory: `torch.tensor(values, device="cuda")` copies from pageable memory, for
    which the host waits until all earlier kernels have run.
    """
    made = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)


def on_host(tensor: Tensor) -> bool:
    """Whether the host can read the tensor without waiting. Code that does so only then is a step's shortcut on a CPU;
    tests of the steps on CUDA take it away."""
    return tensor.is_cpu
