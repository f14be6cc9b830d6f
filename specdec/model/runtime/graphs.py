"""Forwards of fixed shape, captured once and replayed: on CUDA one graph launch instead of hundreds of kernels.

A step of few tokens is bound by kernel launches as much as by memory. The trees of one drafter have one shape, and the
cache keeps its addresses, so everything but the contents of a few inputs is the same at every step. Graphs belong to a
cache and are deleted with it. While time is measured nothing is captured (`captures_postponed`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdec.model.block import Block
from specdec.model.cache import TreeCache

MAX_CHAIN = 16  # trees have few shapes, chains of prompt tokens have many: only chains up to this length are captured
WARM_UPS = 3  # forwards before a capture: libraries allocate and choose their kernels in the first ones

Outputs = tuple[Tensor, ...]
Inputs = tuple[Tensor | None, ...]
# Runs a forward. Returns a function that repeats it on the same memory, and its outputs.
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], Any], Outputs]]


_postponed: ContextVar[list[Callable[[], None]] | None] = ContextVar("_postponed", default=None)


@contextmanager
def captures_postponed() -> Iterator[None]:
    """Capture nothing in the body. A forward of a new shape runs uncaptured, and is captured after the body.

    A capture takes longer than hundreds of forwards, so it must not be part of the time that the body measures. The
    contents of the caches are lost at the end, because a capture writes to them. Within another such body, captures
    wait for the end of the outer one.
    """
    if _postponed.get() is not None:
        yield
        return
    waiting: list[Callable[[], None]] = []
    token = _postponed.set(waiting)
    try:
        yield
    finally:
        _postponed.reset(token)
    for capture in waiting:
        capture()


def cuda_graph(forward: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
    """Capture a forward as a CUDA graph. Return its replay function and its outputs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = forward()
    return graph.replay, outputs


class CapturedForwards:
    """Calls `forward(cache, block, *tensors)` through one capture per cache and shape of the tensors.

    `forward` must read nothing but the tensors and the cache's storage and lengths on the device, and write nothing but
    the cache's storage. Then running it several times, as a capture does, changes nothing. Its outputs are overwritten
    by the next call of the same shape. A forward that cannot be captured (because it waits for the device) runs
    uncaptured, with a warning.

    Args:
        forward: the forward.
        capture: how it is captured.
    """

    def __init__(self, forward: Callable[..., Outputs], capture: Capture = cuda_graph) -> None:
        fields = len(dataclasses.fields(Block))
        self._forward = lambda cache, *flat: forward(cache, Block(*flat[:fields]), *flat[fields:])
        self.capture = capture
        self._replays: WeakKeyDictionary[TreeCache, dict[Any, _Replay]] = WeakKeyDictionary()
        self._met: WeakKeyDictionary[TreeCache, set[Any]] = WeakKeyDictionary()  # shapes whose capture is postponed
        self._impossible = False

    def covers(self, block: Block) -> bool:
        """Whether a forward of this shape is worth capturing."""
        return block.mask is not None or block.new <= MAX_CHAIN

    def __call__(self, cache: TreeCache, block: Block, *more: Tensor) -> Outputs:
        tensors = (*block.tensors, *more)
        if self._impossible:
            return self._forward(cache, *tensors)
        replays = self._replays.setdefault(cache, {})
        shapes = _shapes(tensors)
        if shapes in replays:
            return replays[shapes](tensors)
        if (waiting := _postponed.get()) is not None:
            if shapes not in self._met.setdefault(cache, set()):
                self._met[cache].add(shapes)
                waiting.append(self._later(cache, tensors))
            return self._forward(cache, *tensors)
        self._capture(cache, tensors)
        return replays[shapes](tensors) if shapes in replays else self._forward(cache, *tensors)

    def _capture(self, cache: TreeCache, tensors: Inputs) -> None:
        if self._impossible:
            return
        try:
            self._replays.setdefault(cache, {})[_shapes(tensors)] = _Replay(self._forward, self.capture, cache, tensors)
        except RuntimeError as error:
            self._impossible = True
            warnings.warn(f"runs without captured graphs: {str(error).splitlines()[0]}", stacklevel=5)

    def _later(self, cache: TreeCache, tensors: Inputs) -> Callable[[], None]:
        """Return a function that captures this forward at its present lengths, to be called after the batch."""
        lengths, inputs = list(cache.host_lengths), tuple(None if t is None else t.clone() for t in tensors)

        def capture() -> None:
            with cache.at_lengths(lengths):
                self._capture(cache, inputs)

        return capture


def _shapes(tensors: Inputs) -> tuple[torch.Size | None, ...]:
    return tuple(None if tensor is None else tensor.shape for tensor in tensors)


class _Replay:
    """A captured forward with its own input tensors, into which a call copies its arguments."""

    def __init__(self, forward: Callable[..., Outputs], capture: Capture, cache: TreeCache, tensors: Inputs) -> None:
        self._inputs = tuple(None if tensor is None else tensor.clone() for tensor in tensors)
        self._replay, self._outputs = capture(lambda: forward(cache, *self._inputs))

    def __call__(self, tensors: Inputs) -> Outputs:
        for static, tensor in zip(self._inputs, tensors, strict=True):
            if static is not None and tensor is not None:
                static.copy_(tensor)
        self._replay()
        return self._outputs
