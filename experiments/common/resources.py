"""Assign threads and GPUs to one job of a sweep, and the device to a timed run."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from specdec.errors import InputError
from specdec.measure.device_locks import first_free, timing

_held: list[FileLock] = []  # until the process ends, because CUDA cannot change its devices after it has started


def claim_resources(cfg: DictConfig) -> None:
    """Apply `sweep.threads` and `sweep.gpus` to this process.

    Raises:
        InputError: a value out of range.
    """
    threads, gpus = (OmegaConf.select(cfg, f"sweep.{name}") for name in ("threads", "gpus"))
    if threads is not None:
        if not isinstance(threads, int) or threads < 1:
            raise InputError(
                "sweep.threads", expected="an integer >= 1 or null", got=repr(threads), fix="use 1 or more"
            )
        torch.set_num_threads(threads)
    if gpus not in (None, 1):
        raise InputError("sweep.gpus", expected="1, or null for all", got=gpus, fix="use sweep.gpus=1")
    if gpus == 1 and not (_held or torch.cuda.is_initialized() or "SLURM_JOB_ID" in os.environ):
        take_one_gpu(int(HydraConfig.get().job.num))


def timed(device: torch.device, exclusive: bool, doing: str) -> AbstractContextManager[None]:
    """Hold a device while a run is timed.

    Args:
        device: the device.
        exclusive: if false, nothing is held.
        doing: description shown to runs that wait.
    """
    if not exclusive:
        return nullcontext()
    return timing(device, lambda words: print(words, file=sys.stderr, flush=True), doing)


def take_one_gpu(number: int) -> None:
    """Show this process one GPU of several: the one of the job's number, or the next that no other job holds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    if len(names) < 2:
        return
    name, lock = first_free(names, number)
    if lock is not None:
        _held.append(lock)
    os.environ["CUDA_VISIBLE_DEVICES"] = name
    print(f"job {number}: GPU {name}{'' if lock else ', shared with another job'}", file=sys.stderr)
