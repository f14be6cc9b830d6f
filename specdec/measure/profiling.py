"""Measure the time of a forward over tokens, prefix and batch, and compare it with the machine's ceilings.

The curve t(n), time over the number of nodes, decides which tree pays. Bytes and operations are counted from the loaded
weights and the shapes of the KV cache, so that a roofline can be drawn for every point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specdec.decoding.clock import PhaseClock
from specdec.errors import InputError
from specdec.intervals import median_interval
from specdec.model.block import Block
from specdec.model.cache import TreeCache
from specdec.model.runtime.packed import PackedEmbedding, PackedLinear, packed_modules
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree


@dataclass(frozen=True, order=True)
class Point:
    """Size of a forward.

    Args:
        tokens: nodes per row.
        prefix: committed tokens per row, already in the KV cache.
        batch: rows.

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
    """Bytes and operations of a forward.

    Args:
        bytes: weights and committed KV read, new KV written.
        flops: operations of matrix products and attention; a multiplication and an addition count as two.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Ceilings:
    """Best measured rates of this machine: bytes read and floating-point operations per second."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, work: Work) -> float:
        """Return the lower bound of a forward's time: the larger of its memory time and its compute time."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


@dataclass(frozen=True)
class Profile:
    """Measured times of forwards.

    Args:
        rounds_ms: for each point, its time in each round; the points take turns.
        ceilings: ceilings of the machine, measured in the same rounds.
        resumed_ms: for each point, the time of the same forward without its first layers, measured right before or
            after it; empty if not requested.
    """

    rounds_ms: Mapping[Point, Sequence[float]]
    ceilings: Ceilings
    resumed_ms: Mapping[Point, Sequence[float]] = field(default_factory=dict)

    def ratio(self, point: Point, over: Point) -> tuple[float, tuple[float, float] | None]:
        """Return time of `point` / time of `over`: median over rounds, with its 95 % interval."""
        pairs = zip(self.rounds_ms[point], self.rounds_ms[over], strict=True)
        return median_interval([a / b for a, b in pairs])

    def resumed(self, point: Point) -> tuple[float, tuple[float, float] | None] | None:
        """Return the time of a forward that resumes at the exit layer, as a share of a whole one.

        Median over rounds, with its 95 % interval; None if not measured.
        """
        if point not in self.resumed_ms:
            return None
        pairs = zip(self.resumed_ms[point], self.rounds_ms[point], strict=True)
        return median_interval([a / b for a, b in pairs])


def sweep(base: Mapping[str, int], axes: Mapping[str, Sequence[int]], grid: Mapping[str, Sequence[int]]) -> list[Point]:
    """Return the points of a sweep, each once, sorted.

    Args:
        base: the base point; each axis is varied alone around it.
        axes: values of each axis to vary.
        grid: values of each axis of a full grid; there is no grid if an axis is empty.
    """
    start = Point(**base)
    alone = (replace(start, **{axis: value}) for axis, values in axes.items() for value in values)
    crossed = (Point(**dict(zip(grid, values, strict=True))) for values in product(*grid.values()))
    return sorted(set(chain([start], alone, crossed)))


def fitting(prefixes: Sequence[int], tokens: int, window: int | None) -> list[int]:
    """Return the prefixes, each once, shortened if needed so that `tokens` more fit the context window.

    Args:
        prefixes: numbers of committed tokens.
        tokens: nodes of the largest forward.
        window: the context window in tokens; None for no limit.

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
    """Bytes and operations of one forward that computes logits at every node.

    Experts are counted as if all were read and used, sliding windows as if attention were full.

    Args:
        weight_bytes: bytes of all weights that are read whole, once per forward for any number of rows. An embedding
            table counts only if the output layer shares it.
        matrix_elements: elements of the matrices among them.
        kv_bytes: bytes of the keys and values of one token.
        attention_flops: operations of one query with one key and value, over all layers and heads.
    """

    weight_bytes: int
    matrix_elements: int
    kv_bytes: int
    attention_flops: int

    @classmethod
    def of(cls, target: TargetModel) -> Footprint:
        weights = read_weights(target)
        packed = {id(module.codes): module.packed for module in packed_modules(target.model)}
        bytes_of = {id(part) for form in packed.values() for part in (form.codes, form.scale)}  # shaped unlike matrices
        plain = sum(weight.numel() for weight in weights if weight.ndim > 1 and id(weight) not in bytes_of)
        read = [form.shape for form in packed.values() if any(form.codes is weight for weight in weights)]
        query_heads = target.model.config.get_text_config().num_attention_heads
        return cls(
            weight_bytes=sum(weight.nbytes for weight in weights),
            matrix_elements=plain + sum(outputs * inputs for outputs, inputs in read),
            kv_bytes=target.dtype.itemsize * sum(heads * (key + value) for heads, key, value in target.kv_shapes),
            attention_flops=2 * query_heads * sum(key + value for _, key, value in target.kv_shapes),
        )

    def work(self, point: Point) -> Work:
        seen, rows = point.prefix + point.tokens, point.batch * point.tokens
        return Work(
            bytes=self.weight_bytes + point.batch * seen * self.kv_bytes,
            flops=rows * (2 * self.matrix_elements + seen * self.attention_flops),
        )


def read_weights(target: TargetModel) -> list[Tensor]:
    """Return the weights that a forward reads whole, each once.

    These are all parameters except embedding tables that are only looked up in; of packed weights, codes and scales.
    """
    used: dict[int, Tensor] = {}
    for module in target.model.modules():
        if not isinstance(module, nn.Embedding | PackedEmbedding):
            used |= {id(p): p for p in module.parameters(recurse=False)}
        if isinstance(module, PackedLinear):
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
    """Time every point once per round, in an order drawn anew each round, so that noise affects all points alike.

    A forward runs over a chain of nodes; any tree with as many nodes takes the same time.

    Args:
        target: the target.
        points: sizes of the forwards.
        rounds: number of rounds.
        seed: seed of the order.
        buffer_mib, matrix: as in `Probe`.
        on_round: called after each round with its index.
        exit_layer: also time each forward without its first `exit_layer` layers (early exit).

    Raises:
        InputError: no rounds, no memory for a KV cache, or an exit layer out of range.
    """
    if rounds < 1:
        raise InputError("rounds", expected="an integer >= 1", got=repr(rounds), fix="ask for one")
    if exit_layer is not None:
        target.halves.require_layer(exit_layer, "exit_layer")
    exits = [None] if exit_layer is None else [None, exit_layer]
    probe = Probe(target.device, target.dtype, buffer_mib, matrix)
    caches = {
        batch: target.new_cache(batch, max(p.prefix + p.tokens for p in points if p.batch == batch))
        for batch in sorted({point.batch for point in points})
    }
    order = np.random.default_rng(seed)
    for point in points:  # warm-up: libraries prepare for each shape
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
    """Return the milliseconds of one verify forward over a chain, with logits at every node.

    The prefix has undefined values, because the time does not depend on them.

    Args:
        target: the target.
        cache: cache with room for the point.
        point: size of the forward.
        exit_layer: time only the layers after the first `exit_layer`; None for all layers.
    """
    cache.crop([0] * point.batch)
    cache.advance([point.prefix] * point.batch)
    parents = [range(-1, point.tokens - 1)] * point.batch
    tree = TokenTree.from_rows([[0] * point.tokens] * point.batch, parents, target.device)
    if exit_layer is not None:
        residual = target.halves.lower(cache, Block.of_tree(cache, tree), exit_layer)
    clock = PhaseClock(target.device)
    if target.device.type == "cuda":
        torch.cuda.synchronize()
    clock.start()
    if exit_layer is None:
        target.forward_tree(cache, tree)
    else:
        target.halves.upper(cache, Block.of_tree(cache, tree), residual, exit_layer)
    clock.lap("forward")
    taken = clock.take()
    clock.finish()
    return taken["forward"]


class Probe:
    """Measure the ceilings of the machine: memory bandwidth and matrix products.

    The bandwidth is that of torch's sum over a buffer, in which each thread reads one contiguous part. A kernel that
    reads several parts side by side can be somewhat faster.

    Args:
        device: the device.
        dtype: dtype of the matrices.
        buffer_mib: size of the buffer in MiB, much larger than any processor cache.
        matrix: side of the square matrices.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, buffer_mib: int, matrix: int) -> None:
        self._clock = PhaseClock(device)
        self._buffer = torch.ones(buffer_mib * 2**18, dtype=torch.float32, device=device)
        self._square = torch.ones(matrix, matrix, dtype=dtype, device=device)

    def measure(self) -> Ceilings:
        """Return the rates of one measurement; the ceiling is the best of many."""
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
    """Return a lower bound for a memory-bound forward: milliseconds to read as many bytes as the weights.

    Args:
        target: the target.
        rounds: number of measurements, of which the fastest counts.
        most_mib: largest buffer to read, in MiB; for larger models the time is scaled up.
    """
    size = Footprint.of(target).weight_bytes
    buffer_mib = min(max(size // 2**20, 1), most_mib)
    probe = Probe(target.device, target.dtype, buffer_mib, matrix=1)
    return 1e3 * size / max(probe.measure().bytes_per_second for _ in range(rounds))


def figures(footprint: Footprint, measured: Profile) -> list[dict[str, Any]]:
    """Return one dict per point.

    Each has its time in ms (median with 95 % interval, quartiles, minimum, all rounds), its work, the rates at the
    median time, also as shares of the ceilings, the lower bound `limit_ms`, and `Profile.resumed`.
    """
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
