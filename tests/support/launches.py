"""Count what a step launches on CUDA, on a CPU: eager kernels outside captured forwards, and waits for the device.

The code's shortcuts for a CPU are taken away (`transfer.on_host`, the C++ kernels of the vocabulary), so that it takes
the path it takes on CUDA. A dispatch mode counts the operators that would be kernels.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specdec.decoding import generate
from specdec.model.runtime import vocabulary
from specdec.model.runtime.graphs import CapturedForwards
from specdec.trees import transfer

NO_KERNEL = {  # views, and memory that is only allocated
    "view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias",
    "permute", "as_strided", "split", "split_with_sizes", "unbind", "reshape", "_reshape_alias", "lift_fresh",
    "diagonal", "unsafe_split", "chunk", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided",
    "sym_size", "_local_scalar_dense", "is_pinned", "set_", "resize_",
}  # fmt: skip
OURS = ("specdec", "drafters", "verifiers")
READS = ("tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy")  # a read waits for the device


@dataclass
class Launches:
    """Launches and waits of all steps of a text together.

    Attributes:
        steps: number of steps.
        kernels: operators outside captured forwards, by name.
        waits: reads of the device and blocking copies to it, by place in our code.
        replays: captured forwards.
    """

    steps: int = 0
    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    replays: int = 0
    inside: int = 0  # > 0 in what is not counted: captured forwards, the bodies of counted reads
    counting: bool = False

    @property
    def open(self) -> bool:
        return self.counting and not self.inside

    @property
    def kernels_per_step(self) -> float:
        return self.kernels.total() / self.steps

    @property
    def waits_per_step(self) -> float:
        return self.waits.total() / self.steps

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def wait(self, kind: str) -> None:
        if self.open:
            frame: Any = sys._getframe(2)
            while frame is not None and not frame.f_globals.get("__name__", "").startswith(
                ("specdec", "drafters", "verif")
            ):
                frame = frame.f_back
            where = "?" if frame is None else f"{frame.f_globals['__name__']}:{frame.f_lineno}"
            self.waits[f"{kind} {where}"] += 1


class _Operators(TorchDispatchMode):
    def __init__(self, counted: Launches) -> None:
        super().__init__()
        self._counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        if func.namespace == "aten" and composite:
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        name = func._schema.name.split("::")[1]
        if self._counted.open and name not in NO_KERNEL:
            self._counted.kernels[name] += 1
        return func(*args, **(kwargs or {}))


class _Clock:
    """The loop's stopwatch: tells where steps begin."""

    def __init__(self, counted: Launches) -> None:
        self._counted = counted

    def start(self) -> None:
        self._counted.counting = True

    def lap(self, phase: str) -> None:
        pass

    def take(self) -> dict[str, float]:
        self._counted.steps += 1
        return {}

    def finish(self) -> None:
        self._counted.counting = False


@contextmanager
def counted_as_on_cuda(patch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Count the steps of `speculative` in the body. Models must capture their forwards (`CapturedForwards`)."""
    counted = Launches()
    patch.setattr(transfer, "on_host", lambda _tensor: False)
    patch.setattr(vocabulary, "_library", lambda *_args, **_options: None)
    patch.setattr(generate, "PhaseClock", lambda _device: _Clock(counted))
    for name in READS:
        patch.setattr(torch.Tensor, name, _reading(counted, name, getattr(torch.Tensor, name)))
    patch.setattr(torch, "tensor", _making(counted, torch.tensor))
    patch.setattr(CapturedForwards, "__call__", _replaying(counted, CapturedForwards.__call__))
    with _Operators(counted):
        yield counted


def _reading(counted: Launches, name: str, read: Callable[..., Any]) -> Callable[..., Any]:
    def reads(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        counted.wait(name)
        with counted.uncounted():
            return read(self, *args, **options)

    return reads


def _making(counted: Launches, make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def makes(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("device") is not None:  # from pageable memory
            counted.wait("torch.tensor")
        return make(*args, **options)

    return makes


def _replaying(counted: Launches, call: Callable[..., Any]) -> Callable[..., Any]:
    def replays(self: CapturedForwards, cache: Any, block: Any, *more: Any) -> Any:
        if counted.open:
            copies = sum(tensor is not None for tensor in (*block.tensors, *more))
            counted.kernels["(inputs of a captured forward)"] += copies
            counted.replays += 1
        with counted.uncounted():
            return call(self, cache, block, *more)

    return replays
