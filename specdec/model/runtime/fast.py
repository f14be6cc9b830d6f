"""Put the fast products into a loaded model, and take them out again."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.errors import InputError
from specdec.model.runtime.build import BuildError
from specdec.model.runtime.experts import as_linear
from specdec.model.runtime.few_rows import FewRowLinear
from specdec.model.runtime.library import kernels
from specdec.model.runtime.packed import PackedLinear
from specdec.model.runtime.storage import EXACT, STORED, exactly, require_storage, rounded

RUNTIMES = ("auto", "fast", "stock")


class FastRuntime:
    """Exchanges every `nn.Linear` of `model` that the kernel covers for a `FewRowLinear` that shares its weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._places: list[tuple[torch.nn.Module, str, torch.nn.Module, FewRowLinear]] = []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if FewRowLinear.covers(child):
                    self._places.append((parent, name, child, FewRowLinear(child)))  # type: ignore[arg-type]

    def install(self) -> None:
        for parent, name, _, fast in self._places:
            setattr(parent, name, fast)

    def remove(self) -> None:
        for parent, name, stock, _ in self._places:
            setattr(parent, name, stock)


def linear(weight: Tensor, bias: Tensor | None = None, *, fast: bool, storage: str = STORED) -> torch.nn.Module:
    """Return x W^T + b on given weights, for the products of a drafter.

    Args:
        weight: [outputs, inputs].
        bias: [outputs], or None.
        fast: whether the target runs on the fast products (`TargetModel.runtime`). Otherwise weights are always shared,
            not copied.
        storage: storage format, as in `pack`. With the fast products, any but `stored` makes a packed copy if it is
            smaller.

    Raises:
        InputError: an unknown name for `storage`.
    """
    require_storage(storage, "drafter.storage")
    layer = as_linear(weight, bias)
    if not (fast and FewRowLinear.covers(layer)):
        return layer
    packed = None if storage == STORED else exactly(weight) if storage == EXACT else rounded(weight, storage)
    return FewRowLinear(layer) if packed is None else PackedLinear(packed, layer.bias)


def choose_runtime(name: str, model: PreTrainedModel) -> FastRuntime | None:
    """Return the runtime of that name.

    `stock`: None. `fast`: the fast products. `auto`: the fast products if they are available (fp32 on a CPU, a
    compiler), else None. Always None on CUDA, where `CapturedForwards` is used instead.

    Raises:
        InputError: an unknown name, or `fast` without a compiler or without anything that it covers.
    """
    if name not in RUNTIMES:
        raise InputError(
            "target.runtime", expected=f"one of {', '.join(RUNTIMES)}", got=repr(name), fix="use runtime=auto"
        )
    if name == "stock" or model.device.type == "cuda":  # CUDA uses `CapturedForwards` instead
        return None
    has_products = any(FewRowLinear.covers(m) or isinstance(m, PackedLinear) for m in model.modules())
    if not has_products and name == "auto":
        return None
    try:
        if not has_products:
            raise BuildError(
                f"{type(model).__name__} in {model.dtype} on {model.device} has no fp32 nn.Linear on a CPU"
            )
        kernels()
    except BuildError as error:
        if name == "fast":
            raise InputError(
                "target.runtime", expected="what the fast products need", got=str(error), fix="use runtime=stock"
            ) from error
        warnings.warn(f"target.runtime=auto: running without the fast products, {error}", stacklevel=2)
        return None
    return FastRuntime(model)
