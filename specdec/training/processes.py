"""The end of a run of several processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def process_group_ends() -> Iterator[None]:
    """Destroy the process group when the body is left, also by an error.

    What still holds the group (a DDP model, in a cycle) is collected first. Else its threads outlive it, and one
    that asks for the interpreter while that shuts down aborts the process.
    """
    try:
        yield
    finally:
        gc.collect()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        gc.collect()
