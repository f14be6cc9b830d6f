"""The adapter between the exit layer and the output layer (Kangaroo, arXiv 2404.18911).

residual stream -> residual blocks, or transformer layers with their own keys and values
                -> final norm of the adapter
                -> the target's output layer, or its rows for a draft vocabulary
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
    """An adapter of layers or of residual blocks x + SiLU(W x + b), with a final norm.

    Args:
        exit_layer: number of the target's layers that draft.
        student: the layers and the norm. With `blocks`, only its norm is used.
        blocks: number of residual blocks, which start at zero; 0 uses the student's layers.
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
        """The target's ids of the tokens that the adapter can guess, ascending; None for all tokens."""
        return self.own_vocabulary if self.student is None else self.student.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype if self.student is None else self.student.dtype

    def forward(self, residual: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """Return the input of the output layer. An adapter with layers needs texts from their first token."""
        if self.student is not None:
            states: Tensor = self.student(torch.zeros_like(residual[..., 0], dtype=torch.long), residual)
            return states
        for weight, bias in zip(self.weight, self.bias, strict=True):
            residual = residual + F.silu(F.linear(residual, weight, bias))
        states = self.norm(residual)
        return states

    def in_precision_of(self, target: TargetModel) -> ExitAdapter:
        """Return this adapter if the target is in fp32, else a copy in the target's precision.

        Adapters are trained in fp32.
        """
        if target.dtype is torch.float32:
            return self
        if self.student is None:
            return copy.deepcopy(self).to(target.dtype)
        return ExitAdapter(self.exit_layer, self.student.in_precision_of(target))

    def require_trained_for(self, exit_layer: int) -> None:
        """Refuse an exit layer other than the one it was trained for.

        Raises:
            InputError: the exit layers differ.
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
    """Return an untrained adapter in fp32.

    Args:
        target: the model to draft for.
        exit_layer: number of the target's layers that draft.
        blocks: number of residual blocks; 0 uses layers.
        layers: target layers to initialise from (-1 = last).
        vocabulary: token ids to guess among, ascending; None for all tokens.

    Raises:
        InputError: an exit layer out of range, or the target does not have such layers.
    """
    target.halves.require_layer(exit_layer, "recipe.exit_layer")
    return ExitAdapter(exit_layer, new_student(target, layers, vocabulary), blocks)


def save_adapter(adapter: ExitAdapter, target: TargetModel, folder: Path) -> None:
    """Save the adapter in the format of `drafters.shared.trained`."""
    layers = 0 if adapter.student is None else len(adapter.student.layers)
    config = {"drafter": DRAFTER, "exit_layer": adapter.exit_layer, "blocks": adapter.blocks, "layers": layers}
    save_parts(adapter, config, target, folder)


def load_adapter(folder: Path, target: TargetModel, what: str = "drafter.adapter") -> ExitAdapter:
    """Load an adapter from its folder, on the target's device and in its precision.

    Args:
        folder: the folder that training wrote.
        target: the model to draft for.
        what: name used in error messages.

    Raises:
        InputError: the adapter is missing, corrupt, or made for a target of another shape.
    """
    kinds = {"layers": int, "exit_layer": int, "blocks": int}
    config, state = read_parts(folder, DRAFTER, target, what, kinds)
    vocabulary = next((tensor for name, tensor in state.items() if name.endswith("vocabulary")), None)
    student = new_student(target, [-1] * max(config["layers"], 1), vocabulary)
    adapter = ExitAdapter(config["exit_layer"], student, config["blocks"])
    fill(adapter, config, state, target, what)
    return adapter
