"""How fast training is, and how fast the machine could be."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, tries: int = 5) -> float:
    """Operations per second of a large matrix product, the best of a few."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(tries + 1):
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds[1:])


def counted(work: Callable[[], object]) -> int:
    """Operations in the products of `work()`, its backward pass included where it runs one."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
