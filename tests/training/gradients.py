"""Writes the gradients of a training step: python -m tests.training.gradients DATA OUT BATCH ACCUMULATION, under a
launcher or alone."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from specdec.models import load_tiny
from specdec.training.schedule import Reports, Schedule
from specdec.training.store import TextStore
from specdec.training.trainer import Trainer
from tests.training.linear_head import LinearRecipe


def gradients(data: Path, batch_size: int, accumulation: int) -> tuple[dict[str, torch.Tensor], int]:
    """Of step 3, by parameter; and the number of processes."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    schedule = Schedule(batch_size=batch_size, accumulation=accumulation)
    parts = (LinearRecipe(dropout=0.0), load_tiny(device="cpu"), TextStore(data), schedule, Reports())
    trainer = Trainer(*parts, accelerator, lambda _: {})
    trainer.gradients(3)
    module = trainer.plain_module()
    named = module.named_parameters() if module is not None else ()
    return {name: p.grad for name, p in named if p.grad is not None}, accelerator.num_processes


if __name__ == "__main__":
    data, out, batch_size, accumulation = sys.argv[1:]
    found, processes = gradients(Path(data), int(batch_size), int(accumulation))
    if found:  # the main process
        torch.save({"gradients": found, "processes": processes}, out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
