"""Experts of a mixture as separate products.

transformers keeps the experts of a layer in two tensors with a leading axis (`gate_up_proj`, `down_proj`) and
multiplies slices of them. Here every expert has two linear layers, which other runtimes can exchange for their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ALIKE = 1e-4  # share of the largest result; rounding stays below, a different computation is above
PROBED = 6  # number of random tokens on which the two are compared


class Experts(nn.Module):
    """The weighted sum of down(act(gate(x)) * up(x)) over each token's chosen experts.

    Args:
        gate_up: for each expert, gate and up as one linear layer, gate first.
        down: for each expert, the linear layer back to the width of the residual stream.
        act: the activation.
    """

    def __init__(self, gate_up: nn.ModuleList, down: nn.ModuleList, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_up, self.down, self.act = gate_up, down, act

    @classmethod
    def of(cls, module: Any) -> Experts | None:
        """Return the same layer, sharing the weights; None if `module` is no such layer or computes something else."""
        gate_up: Any = getattr(module, "gate_up_proj", None)
        down: Any = getattr(module, "down_proj", None)
        act = getattr(module, "act_fn", None)
        if not all(isinstance(w, Tensor) and w.dim() == 3 for w in (gate_up, down)) or not callable(act):
            return None
        count, twice, width = gate_up.shape
        if down.shape != (count, width, twice // 2):
            return None
        lists = [nn.ModuleList(as_linear(weight) for weight in weights.unbind()) for weights in (gate_up, down)]
        made = cls(lists[0], lists[1], act)
        return made if made._gives_what(module, width, count) else None

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens dim"],
        top_k_index: Int[Tensor, "tokens chosen"],
        top_k_weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens dim"]:
        total = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            if number >= len(self.down):  # a token that was not routed to any expert
                continue
            token, place = torch.where(top_k_index == number)
            gate, up = self.gate_up[number](hidden_states[token]).chunk(2, -1)
            out = self.down[number](self.act(gate) * up) * top_k_weights[token, place, None]
            total.index_add_(0, token, out.to(total.dtype))
        return total

    def exchange(self, made: Callable[[nn.Linear], nn.Module]) -> Experts:
        """Exchange every linear layer, and return this module."""
        for layers in (self.gate_up, self.down):
            for number, linear in enumerate(layers):
                assert isinstance(linear, nn.Linear)
                layers[number] = made(linear)
        return self

    @torch.no_grad()
    def _gives_what(self, module: nn.Module, width: int, count: int) -> bool:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(PROBED, width, generator=generator)
        index = torch.randint(count, (PROBED, 1), generator=generator)
        shares = torch.rand(PROBED, 1, generator=generator)
        try:
            theirs = module(x, index, shares)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        off = (self(x, index, shares) - theirs).abs().max()
        return bool(theirs.shape == x.shape and off <= ALIKE * theirs.abs().max())


def as_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer that uses these tensors; weight is [outputs, inputs]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
