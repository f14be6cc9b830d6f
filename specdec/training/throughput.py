"""Operations per second of the machine, and operations of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048, tries: int = 5) -> float:
    """Return the operations per second of a large matrix product, the best of several tries.

    Args:
        device: where to run it.
        dtype: dtype of the matrices.
        size: side of the square matrices.
        tries: number of tries, besides one warm-up.
    """
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
    """Return the operations in the matrix products of `work()`, including its backward pass if it runs one."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
