"""Puts the fast products into a loaded model and takes them out again."""

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
from specdec.model.runtime.quantised import STORED, QuantisedLinear, require_storage

RUNTIMES = ("auto", "fast", "stock")


class FastRuntime:
    """Every `nn.Linear` of `model` that the kernel covers, exchanged for a `FewRowLinear` that shares its weights."""

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
    """x W^T + b on given weights: how a drafter's own products become as fast as the target's. fast: whether the target
    runs on the fast products (`TargetModel.runtime`), which can then keep a copy of fp32 weights in lower precision
    (storage: as in `quantise`); otherwise the weights are shared and not copied.

    Raises:
        InputError: an unknown name for `weights`.
    """
    require_storage(storage, "drafter.storage")
    layer = as_linear(weight, bias)
    if not (fast and FewRowLinear.covers(layer)):
        return layer
    return FewRowLinear(layer) if storage == STORED else QuantisedLinear(layer, storage)


def choose_runtime(name: str, model: PreTrainedModel) -> FastRuntime | None:
    """`stock`: None. `fast`: the fast products. `auto`: fast where it can be had (fp32 on a CPU, a compiler). None on
    CUDA too.

    Raises:
        InputError: an unknown name, or `fast` where there is no compiler or nothing it covers.
    """
    if name not in RUNTIMES:
        raise InputError(
            "target.runtime", expected=f"one of {', '.join(RUNTIMES)}", got=repr(name), fix="use runtime=auto"
        )
    if name == "stock" or model.device.type == "cuda":  # there, `CapturedForwards` is what is fast
        return None
    has_products = any(FewRowLinear.covers(m) or isinstance(m, QuantisedLinear) for m in model.modules())
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
