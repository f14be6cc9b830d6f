"""Weight matrices in a storage format of the kernels, and the modules that compute with them.

Weights are widened to fp32 in registers when they are used (`kernels/formats.hpp`, `kernels/blocks.hpp`), so a decode
step reads only the packed bytes. Activations stay in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from specdec.model.runtime import library as lib
from specdec.model.runtime.experts import as_linear


@dataclass(frozen=True)
class Packed:
    """A weight matrix in a storage format.

    Args:
        form: name of the format, as in `library.KINDS`.
        codes: [outputs, ...], laid out as the kernels read them.
        scale: [outputs, ...], or None if the format has none.
        inputs: number of columns of the matrix.
    """

    form: str
    codes: Tensor
    scale: Tensor | None
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), self.inputs

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def rows(self, which: Int[Tensor, " rows"]) -> Packed:
        """Return a copy of these rows, in the same format."""
        return Packed(self.form, self.codes[which], None if self.scale is None else self.scale[which], self.inputs)

    def matrix(self, bias: Tensor | None = None, start: int = 0, size: int | None = None) -> lib.Matrix:
        """Return the rows `start` to `start + size` in the form that the kernels read, in place."""
        scale, bias = (None if tensor is None else tensor[start:] for tensor in (self.scale, bias))
        count = self.shape[0] if size is None else size
        return lib.Matrix(
            self.codes[start:].data_ptr(), lib.address(scale), lib.address(bias), count, lib.KINDS[self.form]
        )

    def widened(self, which: Int[Tensor, " rows"] | None = None) -> Float[Tensor, "rows inputs"]:
        """Return these rows in fp32 (None: all).

        Raises:
            IndexError: a row that the matrix does not have.
            RuntimeError: the packed bytes have been moved or converted.
        """
        count = self.shape[0]
        which = torch.arange(count) if which is None else which.contiguous()
        if not (self.codes.is_cpu and which.is_cpu and which.dtype is torch.int64):
            raise RuntimeError(f"packed weights on {self.codes.device} cannot be widened for {which.dtype} indices")
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < count:
            raise IndexError(f"index out of range for {count} rows")
        out = torch.empty(len(which), self.inputs)
        lib.kernels().widen_rows(self.matrix(), self.inputs, len(which), which.data_ptr(), out.data_ptr())
        return out


class _PackedModule(nn.Module):
    """A module around one packed matrix. Its packed bytes are buffers, which may be shared with other modules."""

    codes: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.form, self.inputs = packed.form, packed.inputs
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        parts = (self.codes, self.scale, self.bias)
        self._kept = [None if part is None else (part.shape, part.dtype) for part in parts]

    @property
    def packed(self) -> Packed:
        return Packed(self.form, self.codes, self.scale, self.inputs)

    @property
    def weight(self) -> Float[Tensor, "rows inputs"]:
        """The weights in fp32 (a copy).

        Raises:
            RuntimeError: the packed bytes have been moved or converted.
        """
        self._require_kept()
        return self.packed.widened()

    def values_at(self, flat: Int[Tensor, " count"]) -> Float[Tensor, " count"]:
        """Return the values at these indices of the flattened matrix, in fp32."""
        row, column = flat // self.inputs, flat % self.inputs
        return self.packed.widened(row).gather(1, column[:, None])[:, 0]

    def _is_kept(self) -> bool:
        """Whether codes, scale and bias can be read as they were packed."""
        parts = self._buffers  # an attribute of a module costs as much as all checks of a tensor
        return all(
            part is None
            if kept is None
            else type(part) is Tensor
            and part.is_cpu
            and part.shape == kept[0]
            and part.dtype is kept[1]
            and part.is_contiguous()
            and not part.is_neg()
            for part, kept in zip((parts["codes"], parts["scale"], parts["bias"]), self._kept, strict=True)
        )

    def _require_kept(self) -> None:
        if not self._is_kept():
            raise RuntimeError(f"weights packed as {self.form} have been moved, or converted to another dtype or shape")


class PackedLinear(_PackedModule):
    """An `nn.Linear` on a CPU whose weights are packed.

    Args:
        packed: the weights.
        bias: [outputs], or None.
        transposed: whether the model has the matrix as [inputs, outputs] (GPT-2's `Conv1D`).
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None, transposed: bool = False) -> None:
        super().__init__(packed, bias)
        self.out_features, self.in_features = packed.shape
        self.transposed = transposed
        self._whole: lib.Matrix | None = None
        self._where: tuple[int | None, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None, "_where": ()}  # a copy finds the addresses of its own tensors

    def values_at(self, flat: Int[Tensor, " count"]) -> Float[Tensor, " count"]:
        if self.transposed:
            flat = flat % self.out_features * self.inputs + flat // self.out_features
        return super().values_at(flat)

    def matrix(self, start: int = 0, size: int | None = None) -> lib.Matrix:
        """Return the outputs `start` to `start + size` in the form that the kernels read, in place."""
        return self.packed.matrix(self.bias, start, size)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = math.prod(x.shape[:-1])
        if not rows or (torch.is_grad_enabled() and x.requires_grad) or not self._takes(x):
            return F.linear(x, self.weight, self.bias)  # raises what `nn.Linear` raises
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], self.out_features)
        lib.kernels().few_rows(x.data_ptr(), rows, self.in_features, y.data_ptr(), self._whole)
        return y

    def _takes(self, x: Tensor) -> bool:
        """Whether the kernel may read the input and the weights. Updates their matrix if they have moved."""
        if not (lib.plain(x) and x.dim() > 0 and x.shape[-1] == self.in_features and self._is_kept()):
            return False
        where = tuple(map(lib.address, self._buffers.values()))
        if where != self._where:
            self._whole, self._where = self.matrix(), where
        return True


class PackedEmbedding(_PackedModule):
    """An `nn.Embedding` on a CPU whose weights are packed; it widens the rows that are looked up."""

    def __init__(self, packed: Packed, padding_idx: int | None = None) -> None:
        super().__init__(packed)
        self.num_embeddings, self.embedding_dim = packed.shape
        self.padding_idx = padding_idx

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        self._require_kept()
        return self.packed.widened(ids.flatten().long()).view(*ids.shape, self.embedding_dim)


PACKED = (PackedLinear, PackedEmbedding)


def packed_modules(model: nn.Module) -> list[PackedLinear | PackedEmbedding]:
    """Return the modules with packed weights."""
    return [module for module in model.modules() if isinstance(module, PACKED)]


def named_weights(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]]]:
    """Yield name, shape and a reader of values by flat index of each parameter, as `named_parameters` of a model whose
    weights are not packed."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, PACKED) and module.codes.data_ptr() not in seen:
            seen.add(module.codes.data_ptr())
            shape: tuple[int, ...] = module.packed.shape
            if isinstance(module, PackedLinear) and module.transposed:
                shape = shape[::-1]
            yield f"{path}.weight", shape, module.values_at
            if module.bias is not None:
                yield f"{path}.bias", tuple(module.bias.shape), _reader(module.bias)
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield f"{path}.{name}".lstrip("."), tuple(weight.shape), _reader(weight)


def _reader(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda flat: weight.detach().flatten()[flat]


@contextmanager
def unpacked(model: PreTrainedModel) -> Iterator[None]:
    """Exchange the modules with packed weights for torch's own in the body, with the same numbers in fp32.

    Modules that share their packed bytes share their weights.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, PACKED)
    ]
    weights: dict[int, nn.Parameter] = {}
    for parent, name, child in places:
        key = child.codes.data_ptr()
        if key not in weights:
            weights[key] = nn.Parameter(child.weight, requires_grad=False)
        setattr(parent, name, _plain(child, weights[key]))
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _plain(module: PackedLinear | PackedEmbedding, weight: nn.Parameter) -> nn.Module:
    if isinstance(module, PackedLinear):
        layer = as_linear(weight, module.bias)
        layer.weight = weight
        return layer
    with torch.device("meta"):
        embedding = nn.Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx)
    embedding.weight = weight
    return embedding
