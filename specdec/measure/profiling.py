"""What a forward costs: time against tokens, prefix and batch, beside what this machine could do at best.

The curve t(n) decides which tree pays. Bytes and operations are counted from the loaded weights and the cache's layer
shapes, so that a roofline can be drawn over any point. Knows targets; no drafter, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specdec.errors import InputError
from specdec.metrics import PhaseClock, median_interval
from specdec.model.cache import TreeCache
from specdec.model.runtime.quantised import QuantisedLinear
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree


@dataclass(frozen=True, order=True)
class Point:
    """A forward of `tokens` nodes behind `prefix` committed tokens, in each of `batch` rows.

    Raises:
        InputError: no tokens, no rows, or a negative prefix.
    """

    tokens: int
    prefix: int
    batch: int

    def __post_init__(self) -> None:
        for name, value, least in (("tokens", self.tokens, 1), ("prefix", self.prefix, 0), ("batch", self.batch, 1)):
            if value < least:
                raise InputError(name, expected=f"an integer >= {least}", got=value, fix="raise it")


@dataclass(frozen=True)
class Work:
    """What a forward must do. bytes: weights and committed KV read, new KV written; flops: of matrix products and
    attention (a multiplication and an addition count as two)."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Ceilings:
    """What this machine does at best: bytes read per second, fp operations per second."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: Work) -> float:
        """No forward can be faster: the larger of reading its bytes and doing its products."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


@dataclass(frozen=True)
class Profile:
    """rounds_ms: one time per round for each point, all points taking turns; ceilings: measured in the same rounds;
    resumed_ms: right beside each, of the same forward without its first layers, where that was asked for."""

    rounds_ms: Mapping[Point, Sequence[float]]
    ceilings: Ceilings
    resumed_ms: Mapping[Point, Sequence[float]] = field(default_factory=dict)

    def ratio(self, point: Point, over: Point) -> tuple[float, tuple[float, float] | None]:
        """How many times as long `point` takes: median over rounds, with its 95 % interval."""
        pairs = zip(self.rounds_ms[point], self.rounds_ms[over], strict=True)
        return median_interval([a / b for a, b in pairs])

    def resumed(self, point: Point) -> tuple[float, tuple[float, float] | None] | None:
        """What a forward that goes on at the exit layer takes of a whole one; None where it was not measured."""
        if point not in self.resumed_ms:
            return None
        pairs = zip(self.resumed_ms[point], self.rounds_ms[point], strict=True)
        return median_interval([a / b for a, b in pairs])


def sweep(base: Mapping[str, int], axes: Mapping[str, Sequence[int]], grid: Mapping[str, Sequence[int]]) -> list[Point]:
    """Every axis varied alone around the base point, and the full grid (none where an axis of it is empty); each point
    once, in order."""
    start = Point(**base)
    alone = (replace(start, **{axis: value}) for axis, values in axes.items() for value in values)
    crossed = (Point(**dict(zip(grid, values, strict=True))) for values in product(*grid.values()))
    return sorted(set(chain([start], alone, crossed)))


def fitting(prefixes: Sequence[int], tokens: int, window: int | None) -> list[int]:
    """The prefixes, those that leave no room for `tokens` more in the context window cut to what does; each once.

    Raises:
        InputError: the tokens alone do not fit.
    """
    if window is None:
        return list(prefixes)
    if tokens > window:
        raise InputError("tokens", expected=f"at most the context window, {window}", got=tokens, fix="lower it")
    return list(dict.fromkeys(min(prefix, window - tokens) for prefix in prefixes))


@dataclass(frozen=True)
class Footprint:
    """What of a model its forwards read and compute with, logits at every node included.

    weight_bytes: of all weights that are read whole, once a forward whatever the number of rows (an embedding table
    only where the output layer shares it); matrix_elements: of those, elements of matrices; kv_bytes: keys and values
    of one token; attention_flops: of one query against one key and value, over all layers and heads.
    Experts are counted as if all were read and used; sliding windows as if they were open.
    """

    weight_bytes: int
    matrix_elements: int
    kv_bytes: int
    attention_flops: int

    @classmethod
    def of(cls, target: TargetModel) -> Footprint:
        weights = read_weights(target)
        quantised = [module for module in target.model.modules() if isinstance(module, QuantisedLinear)]
        codes = {id(buffer) for module in quantised for buffer in module.buffers()}  # shaped unlike their matrix
        plain = sum(weight.numel() for weight in weights if weight.ndim > 1 and id(weight) not in codes)
        query_heads = target.model.config.get_text_config().num_attention_heads
        return cls(
            weight_bytes=sum(weight.nbytes for weight in weights),
            matrix_elements=plain + sum(module.in_features * module.out_features for module in quantised),
            kv_bytes=target.dtype.itemsize * sum(heads * (key + value) for heads, key, value in target.layers),
            attention_flops=2 * query_heads * sum(key + value for _, key, value in target.layers),
        )

    def work(self, point: Point) -> Work:
        seen, rows = point.prefix + point.tokens, point.batch * point.tokens
        return Work(
            bytes=self.weight_bytes + point.batch * seen * self.kv_bytes,
            flops=rows * (2 * self.matrix_elements + seen * self.attention_flops),
        )


def read_weights(target: TargetModel) -> list[Tensor]:
    """What a forward reads whole, each once: all parameters but embedding tables that are only looked up in, and the
    codes and scales of quantised layers."""
    used: dict[int, Tensor] = {}
    with target.stock() as model:
        for module in model.modules():
            if not isinstance(module, nn.Embedding):
                used |= {id(p): p for p in module.parameters(recurse=False)}
            if isinstance(module, QuantisedLinear):
                used |= {id(b): b for b in module.buffers(recurse=False)}
    return list(used.values())


def profile(
    target: TargetModel,
    points: Sequence[Point],
    rounds: int,
    seed: int = 0,
    buffer_mib: int = 1024,
    matrix: int = 2048,
    on_round: Callable[[Any], None] = lambda _: None,
    exit_layer: int | None = None,
) -> Profile:
    """Time every point once a round, in an order drawn anew each round: noise then falls on all of them alike.

    A forward is a chain of drafted nodes; any tree of as many nodes costs the same. buffer_mib, matrix: see `Probe`.
    exit_layer: time also what is left of each forward where the first so many layers have run (early exit).

    Raises:
        InputError: no rounds, no memory for a KV cache, or an exit layer out of range.
    """
    if rounds < 1:
        raise InputError("rounds", expected="an integer >= 1", got=rounds, fix="ask for one")
    if exit_layer is not None:
        target.require_layer(exit_layer, "exit_layer")
    exits = [None] if exit_layer is None else [None, exit_layer]
    probe = Probe(target.device, target.dtype, buffer_mib, matrix)
    caches = {
        batch: target.new_cache(batch, max(p.prefix + p.tokens for p in points if p.batch == batch))
        for batch in sorted({point.batch for point in points})
    }
    order = np.random.default_rng(seed)
    for point in points:  # once unmeasured: libraries prepare themselves for a shape
        for at in exits:
            forward_ms(target, caches[point.batch], point, at)
    times: dict[int | None, dict[Point, list[float]]] = {at: {point: [] for point in points} for at in exits}
    ceilings = [probe.measure()]
    for number in range(rounds):
        for index in order.permutation(len(points)):
            point = points[index]
            for at in exits if number % 2 else reversed(exits):
                times[at][point].append(forward_ms(target, caches[point.batch], point, at))
        ceilings.append(probe.measure())
        on_round(number)
    best = Ceilings(max(c.bytes_per_second for c in ceilings), max(c.flops_per_second for c in ceilings))
    return Profile(times[None], best, {} if exit_layer is None else times[exit_layer])


@torch.inference_mode()
def forward_ms(target: TargetModel, cache: TreeCache, point: Point, exit_layer: int | None = None) -> float:
    """Milliseconds of one verify forward over a chain, logits at every node; with an exit layer, of the layers behind
    it. The prefix holds whatever the cache was created with: the time does not depend on the values."""
    cache.crop([0] * point.batch)
    cache.advance([point.prefix] * point.batch)
    parents = [range(-1, point.tokens - 1)] * point.batch
    tree = TokenTree.from_rows([[0] * point.tokens] * point.batch, parents, target.device)
    if exit_layer is not None:
        positions = cache.lengths[:, None] + tree.depth
        stream = target.lower(cache, tree.tokens, positions, tree.ancestor_mask, exit_layer)
    clock = PhaseClock(target.device)
    if target.device.type == "cuda":
        torch.cuda.synchronize()
    clock.start()
    if exit_layer is None:
        target.forward_tree(cache, tree)
    else:
        positions = cache.lengths[:, None] + tree.depth
        target.upper(cache, tree.tokens, stream, positions, tree.ancestor_mask, exit_layer)
    clock.lap("forward")
    taken = clock.take()
    clock.finish()
    return taken["forward"]


class Probe:
    """Measures the ceilings: reading a buffer of `buffer_mib` MiB, far larger than any cache, with all threads; and the
    product of two square matrices of side `matrix` in the model's dtype. The read is torch's sum, one stream a thread;
    a kernel that reads several side by side may come out somewhat above it."""

    def __init__(self, device: torch.device, dtype: torch.dtype, buffer_mib: int, matrix: int) -> None:
        self._clock = PhaseClock(device)
        self._buffer = torch.ones(buffer_mib * 2**18, dtype=torch.float32, device=device)
        self._square = torch.ones(matrix, matrix, dtype=dtype, device=device)

    def measure(self) -> Ceilings:
        """Of one turn; the ceiling is the best of many."""
        self._clock.start()
        self._buffer.sum()
        self._clock.lap("read")
        self._square @ self._square
        self._clock.lap("product")
        taken = self._clock.take()
        self._clock.finish()
        flops = 2 * self._square.shape[0] ** 3
        return Ceilings(self._buffer.nbytes / taken["read"] * 1e3, flops / taken["product"] * 1e3)


def plain_read_ms(target: TargetModel, rounds: int = 5, most_mib: int = 256) -> float:
    """What a forward cannot beat while memory bounds it: the time of a plain read of as many bytes as its weights,
    the best of some rounds. Of large models, `most_mib` MiB are read and scaled up."""
    size = Footprint.of(target).weight_bytes
    buffer_mib = min(max(size // 2**20, 1), most_mib)
    probe = Probe(target.device, target.dtype, buffer_mib, matrix=1)
    return 1e3 * size / max(probe.measure().bytes_per_second for _ in range(rounds))


def figures(footprint: Footprint, measured: Profile) -> list[dict[str, Any]]:
    """One dict a point: its time in ms (median with 95 % interval, quartiles, minimum, all rounds), what it
    achieved at the median beside the ceilings, and `Profile.resumed`."""
    out = []
    for point, rounds in measured.rounds_ms.items():
        needed, (middle, interval) = footprint.work(point), median_interval(rounds)
        low, high = np.quantile(rounds, [0.25, 0.75])
        seconds = middle / 1e3
        out.append(
            {
                **asdict(point),
                "ms": {
                    "median": middle,
                    "ci95": interval,
                    "quartiles": (float(low), float(high)),
                    "min": min(rounds),
                    "rounds": list(rounds),
                },
                **asdict(needed),
                "gb_per_second": needed.bytes / seconds / 1e9,
                "gflop_per_second": needed.flops / seconds / 1e9,
                "of_read_ceiling": needed.bytes / seconds / measured.ceilings.bytes_per_second,
                "of_product_ceiling": needed.flops / seconds / measured.ceilings.flops_per_second,
                "limit_ms": measured.ceilings.seconds(needed) * 1e3,
                "resumed": measured.resumed(point),
            }
        )
    return out
