"""End a run of several processes cleanly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def process_group_ends() -> Iterator[None]:
    """Destroy the process group when the body ends, also after an exception.

    Objects that still hold the group, such as a DDP model in a reference cycle, are collected first. Otherwise their
    threads outlive the group, and a thread that takes the GIL while the interpreter shuts down aborts the process.
    """
    try:
        yield
    finally:
        gc.collect()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        gc.collect()
