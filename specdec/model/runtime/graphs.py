"""Forwards of fixed shape, captured once and replayed: on CUDA one graph launch instead of hundreds of kernels.

A step of few tokens is bound by kernel launches as much as by memory. Trees are padded to few shapes, and the cache
keeps its addresses, so everything but the contents of a few inputs is the same at every step. Graphs belong to a cache
and are deleted with it. While time is measured nothing is captured (`captures_postponed`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.cache import TreeCache
from specdec.model.runtime.buckets import Key, StaticInputs, cut, key, padding

MAX_CHAIN = 16  # trees have few shapes, chains of prompt tokens have many: only chains up to this length are captured
WARM_UPS = 3  # forwards before a capture: libraries allocate and choose their kernels in the first ones

Outputs = tuple[Tensor, ...]
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


class CudaGraphs:
    """Captures forwards as CUDA graphs that share one memory pool.

    Memory that one forward frees serves the next. Outputs are kept, so no other graph writes over them.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, forward: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
        """Capture a forward. Return its replay function and its outputs."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = forward()
        return graph.replay, outputs


class CapturedForwards:
    """Calls `forward(cache, block, *tensors)` through one capture per cache and bucket of shapes (`buckets.py`).

    `forward` must read nothing but the tensors and the cache's storage and lengths on the device, and write nothing but
    the cache's storage behind the committed prefix. Then running it several times, as a capture does, changes nothing.
    Its outputs are overwritten by the next call of the same bucket. A bucket that cannot be captured (because the
    forward waits for the device) runs uncaptured, with a warning. So does a block whose padding finds no room in the
    cache.

    Args:
        forward: the forward.
        capture: how it is captured; None for CUDA graphs.

    Raises:
        InputError: too little memory for a capture.
    """

    def __init__(self, forward: Callable[..., Outputs], capture: Capture | None = None) -> None:
        self._forward, self.capture = forward, capture or CudaGraphs()
        self._replays: WeakKeyDictionary[TreeCache, dict[Key, _Replay]] = WeakKeyDictionary()
        self._met: WeakKeyDictionary[TreeCache, set[Key]] = WeakKeyDictionary()  # buckets whose capture is postponed
        self._impossible: set[Key] = set()

    def covers(self, block: Block) -> bool:
        """Whether a forward of this shape is worth capturing."""
        return block.mask is not None or block.new <= MAX_CHAIN

    def __call__(self, cache: TreeCache, block: Block, *more: Tensor) -> Outputs:
        shapes = key(block, more)
        if shapes in self._impossible or not cache.has_room(block.size + padding(block)):
            return self._forward(cache, block, *more)
        replays = self._replays.setdefault(cache, {})
        if shapes not in replays:
            if (waiting := _postponed.get()) is not None:
                if shapes not in self._met.setdefault(cache, set()):
                    self._met[cache].add(shapes)
                    waiting.append(self._later(cache, StaticInputs(block, more), shapes))
                return self._forward(cache, block, *more)
            self._capture(cache, StaticInputs(block, more), shapes)
        return replays[shapes](block, more) if shapes in replays else self._forward(cache, block, *more)

    def _capture(self, cache: TreeCache, inputs: StaticInputs, shapes: Key) -> None:
        if shapes in self._impossible:
            return
        try:
            replay, outputs = self.capture(lambda: self._forward(cache, inputs.block, *inputs.more))
        except torch.OutOfMemoryError as error:
            raise InputError(
                "target.runtime",
                expected=f"memory for a captured graph of {inputs.block.new} nodes in {len(inputs.block.tokens)} rows",
                got=str(error).splitlines()[0],
                fix="lower generation.batch_size, or use target.runtime=stock",
            ) from error
        except RuntimeError as error:
            self._impossible.add(shapes)
            warnings.warn(
                f"{inputs.block.new} nodes run without a captured graph: {str(error).splitlines()[0]}", stacklevel=5
            )
        else:
            self._replays.setdefault(cache, {})[shapes] = _Replay(inputs, replay, outputs)

    def _later(self, cache: TreeCache, inputs: StaticInputs, shapes: Key) -> Callable[[], None]:
        """Return a function that captures this forward at its present lengths, to be called after the batch."""
        lengths = list(cache.host_lengths)

        def capture() -> None:
            with cache.at_lengths(lengths):
                self._capture(cache, inputs, shapes)

        return capture


@dataclass(frozen=True)
class _Replay:
    """A captured forward with its own input tensors, into which a call copies its arguments."""

    inputs: StaticInputs
    replay: Callable[[], Any]
    outputs: Outputs

    def __call__(self, block: Block, more: tuple[Tensor, ...]) -> Outputs:
        self.inputs.copy(block, more)
        self.replay()
        return cut(self.outputs, block)
