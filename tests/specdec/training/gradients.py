"""Write the gradients of a training step, alone or under a launcher.

python -m tests.specdec.training.gradients DATA OUT BATCH ACCUMULATION
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from specdec.model.load import load_tiny
from specdec.training.processes import process_group_ends
from specdec.training.schedule import Reports, Schedule
from specdec.training.text.store import TextStore
from specdec.training.trainer import Trainer
from tests.specdec.training.linear_head import LinearRecipe


def trainer(data: Path, batch_size: int, accumulation: int, **schedule_options: Any) -> Trainer:
    """One that measures nothing."""
    torch.set_num_threads(1)
    schedule = Schedule(batch_size=batch_size, accumulation=accumulation, **schedule_options)
    parts = (LinearRecipe(dropout=0.0), load_tiny(device="cpu"), TextStore(data), schedule, Reports())
    return Trainer(*parts, Accelerator(cpu=True), lambda _: {})


def gradients(data: Path, batch_size: int, accumulation: int) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of step 3, by parameter; and the number of processes."""
    made = trainer(data, batch_size, accumulation)
    made.gradients(3)
    module = made.plain_module()
    named = module.named_parameters() if module is not None else ()
    return {name: p.grad for name, p in named if p.grad is not None}, made.accelerator.num_processes


if __name__ == "__main__":
    data, out, batch_size, accumulation = sys.argv[1:]
    with process_group_ends():
        found, processes = gradients(Path(data), int(batch_size), int(accumulation))
        if found:  # the main process
            torch.save({"gradients": found, "processes": processes}, out)
