"""What stands between the exit layer and the output layer: a few residual blocks, or transformer layers with keys and
values of their own (Kangaroo, arXiv 2404.18911); then a final norm of its own and the target's output layer, or those
of its rows that are a draft vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from drafters.shared.trained import fill, read_parts, save_parts
from specdec.errors import InputError
from specdec.model.students import Student, new_student
from specdec.model.target import TargetModel

DRAFTER = "early_exit"


class ExitAdapter(nn.Module):
    """exit_layer: the layers of the target before it. The student's layers and norm; or, with `blocks`, so many
    residual blocks x + SiLU(W x + b), zero when fresh, and the student's norm.
    """

    own_vocabulary: Tensor | None

    def __init__(self, exit_layer: int, student: Student, blocks: int = 0) -> None:
        super().__init__()
        self.exit_layer, self.blocks = exit_layer, blocks
        self.student = None if blocks else student
        if blocks:
            dim, device = student.model.config.get_text_config().hidden_size, student.model.device
            self.norm = student.norm
            self.weight = nn.Parameter(torch.zeros(blocks, dim, dim, device=device))
            self.bias = nn.Parameter(torch.zeros(blocks, dim, device=device))
            self.register_buffer("own_vocabulary", student.vocabulary)

    @property
    def vocabulary(self) -> Int[Tensor, " rows"] | None:
        """The target's ids of the tokens it may guess, ascending; None: all."""
        return self.own_vocabulary if self.student is None else self.student.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype if self.student is None else self.student.dtype

    def forward(self, stream: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the output layer reads; where there are layers, of texts from their first token on."""
        if self.student is not None:
            states: Tensor = self.student(torch.zeros_like(stream[..., 0], dtype=torch.long), stream)
            return states
        for weight, bias in zip(self.weight, self.bias, strict=True):
            stream = stream + F.silu(F.linear(stream, weight, bias))
        states = self.norm(stream)
        return states

    def in_precision_of(self, target: TargetModel) -> ExitAdapter:
        """Itself, or a copy where the target is not in fp32, in which adapters are trained."""
        if target.dtype is torch.float32:
            return self
        if self.student is None:
            return copy.deepcopy(self).to(target.dtype)
        return ExitAdapter(self.exit_layer, self.student.in_precision_of(target))

    def require_trained_for(self, exit_layer: int) -> None:
        """Refuse another exit layer than it was trained for.

        Raises:
            InputError: names both.
        """
        if exit_layer != self.exit_layer:
            raise InputError(
                "drafter.adapter",
                expected=f"an adapter for drafter.exit_layer={exit_layer}",
                got=f"one that was trained for {self.exit_layer}",
                fix=f"use drafter.exit_layer={self.exit_layer}, or train another",
            )


def fresh_adapter(
    target: TargetModel,
    exit_layer: int,
    blocks: int = 0,
    layers: Sequence[int] = (-1,),
    vocabulary: Int[Tensor, " rows"] | None = None,
) -> ExitAdapter:
    """An untrained adapter in fp32: residual blocks, or copies of the target's layers of these numbers (-1: its last).

    Raises:
        InputError: an exit layer out of range, or layers the target does not have.
    """
    target.require_layer(exit_layer, "recipe.exit_layer")
    return ExitAdapter(exit_layer, new_student(target, layers, vocabulary), blocks)


def save_adapter(adapter: ExitAdapter, target: TargetModel, folder: Path) -> None:
    """What was trained, in the format of `drafters.shared.trained`."""
    layers = 0 if adapter.student is None else len(adapter.student.layers)
    config = {"drafter": DRAFTER, "exit_layer": adapter.exit_layer, "blocks": adapter.blocks, "layers": layers}
    save_parts(adapter, config, target, folder)


def load_adapter(folder: Path, target: TargetModel, what: str = "drafter.adapter") -> ExitAdapter:
    """An adapter from its folder, on the target's device and in its precision.

    Raises:
        InputError: no adapter there, a corrupt one, or one for a target of another shape.
    """
    kinds = {"layers": int, "exit_layer": int, "blocks": int}
    config, state = read_parts(folder, DRAFTER, target, what, kinds)
    vocabulary = next((tensor for name, tensor in state.items() if name.endswith("vocabulary")), None)
    student = new_student(target, [-1] * max(config["layers"], 1), vocabulary)
    adapter = ExitAdapter(config["exit_layer"], student, config["blocks"])
    fill(adapter, config, state, target, what)
    return adapter
