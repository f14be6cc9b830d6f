"""A drafter's own layers run on the kernel and the runtime of the target that they draft for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specdec.model import students
from specdec.model.load import load_tiny
from specdec.model.students import Student, new_student
from specdec.model.target import TargetModel


@pytest.mark.parametrize("runtime", ["fast", "stock"])
def test_layers_run_as_their_target_runs(runtime: str) -> None:
    target = load_tiny(device="cpu", runtime=runtime, kernel="dense")
    made = new_student(target, [0]).as_target(target, "student")
    assert (made.runtime is None) == (target.runtime is None) == (runtime == "stock")
    assert (made.kernel.name, made.depth, made.name) == ("dense", 1, "student")


@pytest.mark.parametrize(("device", "runtime"), [("cuda", "auto"), ("cpu", "stock")])
def test_on_cuda_they_are_captured_without_fast_products(
    device: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_tiny(device="cpu", runtime="stock")
    student, asked = new_student(target, [0]), {}

    def made(model: PreTrainedModel, **options: Any) -> TargetModel:
        asked.update(options)
        return target

    monkeypatch.setattr(students, "TargetModel", made)
    monkeypatch.setattr(Student, "as_model", lambda self, *_: self.model)
    monkeypatch.setattr(TargetModel, "device", property(lambda _: torch.device(device)))
    student.as_target(target, "adapter", prove=False)
    assert asked == {"name": "adapter", "kernel": target.kernel.name, "runtime": runtime, "prove": False}
