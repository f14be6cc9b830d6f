"""Weights in lower precision: bf16, int8 or int4, widened to fp32 in the first-level cache when they are used.

A decode step reads a half, a quarter or less than a sixth of the bytes; activations stay in fp32. The quantised model
is then the target: lossless refers to it, and references run it too.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from specdec.errors import InputError
from specdec.model.runtime import library as lib
from specdec.model.runtime.build import BuildError
from specdec.model.runtime.experts import Experts, as_linear

STORED = "stored"
STORAGE = (STORED, "bf16", "int8", "int4")
GROUP = 32  # int4 weights that share a scale, as in kernels/product.hpp


class QuantisedLinear(nn.Module):
    """An `nn.Linear` on a CPU whose weights are kept in the format `storage`. `linear` itself is not changed.

    int8 has one scale per output, int4 one scale per 32 inputs and two weights per byte. Both round to the nearest
    value of a symmetric grid.
    """

    codes: Tensor
    scale: Tensor | None
    bias: Tensor | None
    _whole: lib.Matrix | None
    _where: tuple[int, int | None, int | None]

    def __init__(self, linear: nn.Linear, storage: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.storage = linear.in_features, linear.out_features, storage
        w = linear.weight.detach().float()
        scale = None
        if storage == "bf16":
            self.kind, codes = lib.BFLOAT16, w.bfloat16()
        elif storage == "int8":
            scale = _scale(w, 127)
            self.kind, codes = lib.INT8, (w / scale).round().to(torch.int8)
        else:
            grouped = F.pad(w, (0, -self.in_features % GROUP)).unflatten(1, (-1, GROUP))
            scale = _scale(grouped, 7)
            low, high = ((grouped / scale).round() + 8).to(torch.uint8).chunk(2, -1)
            self.kind, codes = lib.INT4, low | high << 4
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", None if scale is None else scale.squeeze(-1).contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self._sizes = [None if part is None else part.shape for part in (self.codes, self.scale, self.bias)]
        self._stored, self._where = self.codes.dtype, (0, None, None)
        self._kernel, self._whole = lib.kernels().few_rows, None

    @property
    def weight(self) -> Float[Tensor, "outputs features"]:
        """The dequantised weights in fp32 (a copy)."""
        if self.scale is None:
            return self.codes.float()
        if self.kind == lib.INT8:
            return self.codes * self.scale[:, None]
        values = torch.cat([self.codes & 15, self.codes >> 4], -1).float() - 8
        return (values * self.scale[..., None]).flatten(1)[:, : self.in_features]

    def matrix(self, start: int = 0, size: int | None = None) -> lib.Matrix:
        """Return the outputs `start` to `start + size` in the form that the kernels read, in place."""
        scale, bias = (None if tensor is None else tensor[start:] for tensor in (self.scale, self.bias))
        return lib.Matrix(
            self.codes[start:].data_ptr(),
            lib.address(scale),
            lib.address(bias),
            size or self.out_features,
            self.kind,
        )

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = math.prod(x.shape[:-1])
        if not rows or (torch.is_grad_enabled() and x.requires_grad) or not self._takes(x):
            return F.linear(x, self.weight, self.bias)  # raises what `nn.Linear` raises
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], self.out_features)
        self._kernel(x.data_ptr(), rows, self.in_features, y.data_ptr(), self._whole)
        return y

    def _takes(self, x: Tensor) -> bool:
        """Whether the kernel may read the input and the weights. Updates their matrix if they have moved."""
        parts = self._buffers  # an attribute of a module costs as much as all checks of a tensor
        codes, scale, bias = parts["codes"], parts["scale"], parts["bias"]
        readable = (
            lib.plain(x)
            and x.dim() > 0
            and x.shape[-1] == self.in_features
            and type(codes) is Tensor
            and codes.is_cpu
            and codes.shape == self._sizes[0]
            and codes.dtype is self._stored
            and codes.is_contiguous()
            and _fits(scale, self._sizes[1])
            and _fits(bias, self._sizes[2])
        )
        if not readable:
            return False
        where = (codes.data_ptr(), lib.address(scale), lib.address(bias))  # type: ignore[union-attr]
        if where != self._where:
            self._whole, self._where = self.matrix(), where
        return True


def _fits(part: Tensor | None, size: torch.Size | None) -> bool:
    """Whether a scale or bias has its original size and can be read; None fits None."""
    if part is None or size is None:
        return part is None and size is None
    return lib.plain(part) and part.shape == size and part.is_contiguous()


def quantise(model: PreTrainedModel, storage: str) -> str | None:
    """Exchange every product of `model` with its weights for one in lower precision, and free the originals.

    Products are `nn.Linear`, GPT-2's `Conv1D`, and experts that transformers keeps in one tensor. Embeddings stay; an
    output layer that shared their weights has its own from then on.

    storage: `stored` (nothing is done), `bf16`, `int8` or `int4`.

    Returns:
        A line that names what stays in fp32, or None if nothing was done.

    Raises:
        InputError: an unknown name, a model that is not in fp32 on a CPU, or no compiler.
    """
    require_storage(storage, "target.storage")
    if storage == STORED:
        return None
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        raise InputError(
            "target.storage",
            expected=f"a model in float32 on a CPU for storage={storage}",
            got=f"{model.dtype} on {model.device}",
            fix="use device=cpu dtype=float32, or a checkpoint that is quantised for your device",
        )
    try:
        lib.kernels()
    except BuildError as error:
        raise InputError(
            "target.storage", expected=f"a compiler for storage={storage}", got=str(error), fix="use storage=stored"
        ) from error
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (made := in_lower_precision(child, storage)) is not None:
                setattr(parent, name, made)
    return _what_stays(model, storage)


def in_lower_precision(module: nn.Module, storage: str) -> nn.Module | None:
    """Return the same products with weights in format `storage`; None for a module that `quantise` does not
    exchange."""
    if type(module) is nn.Linear:
        return QuantisedLinear(module, storage)
    if type(module) is Conv1D:
        return QuantisedLinear(as_linear(module.weight.T, module.bias), storage)
    experts = Experts.of(module)
    return None if experts is None else experts.in_lower_precision(lambda linear: QuantisedLinear(linear, storage))


def _what_stays(model: PreTrainedModel, storage: str) -> str:
    """Return one line: how many weights are quantised, and how many stay in fp32 in which modules."""
    kept: Counter[str] = Counter()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            kept[type(module).__name__] += parameter.numel()
    small = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantisedLinear))
    where = ", ".join(f"{name} {count / 1e6:,.2f}M" for name, count in kept.most_common() if count)
    return f"storage={storage}: {small / 1e6:,.2f}M weights are kept so; in fp32 stay {where or 'none'}"


def require_storage(storage: str, what: str) -> None:
    """Refuse an unknown storage format.

    `what`: name used in error messages.

    Raises:
        InputError: names the known ones.
    """
    if storage not in STORAGE:
        expected, fix = f"one of {', '.join(STORAGE)}", "use storage=stored"
        raise InputError(what, expected=expected, got=repr(storage), fix=fix)


def _scale(w: Tensor, largest: int) -> Tensor:
    """Return the step of a grid that reaches the largest absolute value of each last dimension."""
    return (w.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
