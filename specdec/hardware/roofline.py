"""Predict the time of a forward on a machine: the larger of memory time and compute time, plus communication.

Weights and attention run one after the other and can be bound by different resources: at a large batch and a long
context, compute bounds the weights and memory bounds the attention. Therefore the limit of each is computed and the two
are added. `Reach` holds the share of the peaks that kernels reach and the fixed costs; its default values give a
limit that no forward can beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.errors import InputError
from specdec.hardware.machine import BYTES, Machine
from specdec.hardware.model_cost import Attention, ModelShape, Precision


@dataclass(frozen=True)
class Part:
    """Work and time of one device for one part of a forward.

    Args:
        name: "weights" or "attention".
        bytes: bytes read and written.
        flops: operations; a multiplication and an addition count as two.
        seconds: the larger of memory time and compute time.
        memory_bound: True if memory time is the larger one.
    """

    name: str
    bytes: float
    flops: float
    seconds: float
    memory_bound: bool


@dataclass(frozen=True)
class ForwardCost:
    """Work and time of one forward, per device. `communication` and `overhead` are seconds."""

    parts: Sequence[Part]
    communication: float = 0.0
    overhead: float = 0.0

    @property
    def bytes(self) -> float:
        return sum(part.bytes for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts) + self.communication + self.overhead

    @property
    def bound(self) -> str:
        """Name of the largest share of the time: memory, compute, communication or overhead."""
        times = {
            "memory": sum(p.seconds for p in self.parts if p.memory_bound),
            "compute": sum(p.seconds for p in self.parts if not p.memory_bound),
            "communication": self.communication,
            "overhead": self.overhead,
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Reach:
    """How much of a machine's peaks its kernels reach, and fixed costs.

    Args:
        memory, compute: share of the peak bandwidth and of the peak operations per second, in (0, 1].
        message_seconds: fixed time of an all-reduce, besides its bytes.
        overhead_seconds: fixed time of a forward, besides its parts (kernel launches, Python).

    Raises:
        InputError: a share is outside (0, 1], or a time is negative or infinite.
    """

    memory: float = 1.0
    compute: float = 1.0
    message_seconds: float = 0.0
    overhead_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("memory", "compute"):
            if not 0 < getattr(self, name) <= 1:
                raise _bad(f"reach.{name}", "a share in (0, 1]", getattr(self, name), "1 is the peak")
        for name in ("message_seconds", "overhead_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise _bad(f"reach.{name}", "seconds >= 0", getattr(self, name), "0 leaves it out")


@dataclass(frozen=True)
class Roofline:
    """Cost curve (`CostCurve`) of a tensor-parallel model on equal devices.

    Every matrix is split evenly over the devices; norms and biases are copied. KV heads are split, and copied if there
    are more devices than heads. A layer has two all-reduces, and the logits are gathered once. In a ring of t devices
    an all-reduce sends 2 (t-1)/t of the sum's bytes per device.

    Args:
        shape: the model.
        machine: one device.
        precision: dtypes of weights, KV cache and computation.
        devices: number of devices.
        link: name of the link between them; by default the machine's fastest.
        reach: share of the peaks that kernels reach, and fixed costs.

    Raises:
        InputError: no devices, heads that cannot be split over them, no link between devices, or a dtype that the
            machine has no figure for.
    """

    shape: ModelShape
    machine: Machine
    precision: Precision = field(default_factory=Precision)
    devices: int = 1
    link: str | None = None
    reach: Reach = field(default_factory=Reach)

    def __post_init__(self) -> None:
        self.machine.flops_per_second(self.precision.compute)
        if self.devices < 1:
            raise _bad("devices", "an integer >= 1", self.devices, "use one")
        if self.devices > 1:
            self.machine.link_bytes_per_second(self.link)
        for layer in self.shape.attention:
            heads, kv = layer.query_heads, layer.kv_heads
            if heads % self.devices or (kv % self.devices and self.devices % kv):
                expected = f"a number that {heads} query and {kv} KV heads of {self.shape.name} can be split over"
                raise _bad("devices", expected, self.devices, "use a power of two that divides them")

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        """Return the seconds of one forward that verifies `nodes` tokens per row, the root included.

        Args:
            nodes: tokens per row.
            batch: rows.
            context: tokens of each row already in the KV cache.
        """
        return self.forward(nodes, batch, context).seconds

    def decode(self, batch: int = 1, context: int = 512) -> ForwardCost:
        """Return the forward of one step of plain decoding: one token per row."""
        return self.forward(1, batch, context)

    def prefill(self, tokens: int, batch: int = 1) -> ForwardCost:
        """Return the forward of a prefill: causal, logits at the last token of each row only."""
        return self.forward(tokens, batch, 0, causal=True)

    def forward(self, nodes: int, batch: int = 1, context: int = 512, causal: bool = False) -> ForwardCost:
        """Return the work and time of one forward.

        Args:
            nodes: new tokens per row.
            batch: rows.
            context: tokens of each row already in the KV cache.
            causal: True for a prefill: causal attention, logits at the last token only. False for a tree under a mask:
                attention between all nodes is computed, and all have logits.

        Raises:
            InputError: no nodes or rows, or a negative context.
        """
        for what, value, least in (("nodes", nodes, 1), ("batch", batch, 1), ("context", context, 0)):
            if value < least:
                raise _bad(what, f"an integer >= {least}", value, "raise it")
        rows, scored = nodes * batch, batch if causal else nodes * batch
        parts = [self._weights(rows, scored)]
        if self.shape.attention:
            parts.append(self._attention(nodes, batch, context, causal))
        return ForwardCost(parts, self._communication(rows, scored), self.reach.overhead_seconds)

    # ---- memory -----------------------------------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> float:
        """Bytes of all stored weights, per device."""
        shape, split = self.shape, self.shape.elements - self.shape.vectors
        return split / self.devices * BYTES[self.precision.weights] + shape.vectors * BYTES[self.precision.compute]

    @property
    def kv_bytes(self) -> float:
        """Bytes of the KV cache for one token in all layers, per device, ignoring sliding windows."""
        return (
            sum(a.layers * self._kv_heads(a) * (a.key + a.value) for a in self.shape.attention)
            * (BYTES[self.precision.kv])
        )

    def cache_bytes(self, batch: int, context: int) -> float:
        """Return the bytes of the KV cache per device; a layer with a sliding window keeps at most its window."""
        kept = sum(
            a.layers * self._kv_heads(a) * (a.key + a.value) * min(context, a.window or context)
            for a in self.shape.attention
        )
        return batch * kept * BYTES[self.precision.kv]

    @property
    def free_bytes(self) -> float:
        """Bytes left for the KV cache per device; negative if the weights alone do not fit.

        Activations are not counted.
        """
        return self.machine.bytes - self.weight_bytes

    def require_fit(self, batch: int = 1, context: int = 0) -> None:
        """Refuse a batch and context whose weights and KV cache do not fit the memory of a device.

        Raises:
            InputError: they do not fit; the message says by how many GB.
        """
        needed = self.weight_bytes + self.cache_bytes(batch, context)
        if needed <= self.machine.bytes:
            return
        what = f"weights ({self.weight_bytes / 1e9:.1f} GB)"
        if context:
            what += f" and cache of {batch} x {context:,} tokens ({self.cache_bytes(batch, context) / 1e9:.1f} GB)"
        over = (needed - self.machine.bytes) / 1e9
        raise _bad(
            f"{self.shape.name} on {self.devices} x {self.machine.name}",
            f"{what} within {self.machine.gigabytes:g} GB a device",
            f"{over:.1f} GB too many on each",
            "use more devices, fewer bits, or a smaller batch or context",
        )

    def largest_batch(self, context: int) -> int:
        """Return the largest number of rows of `context` tokens that fits; 0 if not even one does."""
        row = self.cache_bytes(1, context)
        return max(0, int(self.free_bytes // row)) if row else 0

    def largest_context(self, batch: int = 1) -> int:
        """Return the largest number of tokens per row that fits, at most the model's context window.

        0 if the weights alone do not fit.
        """
        if self.free_bytes <= 0 or not self.kv_bytes:
            return 0
        low, high = 0, self.shape.window or int(self.free_bytes / self.kv_bytes * len(self.shape.attention) * 1e3)
        while low < high:  # bisection: with sliding windows the bytes of a row are not proportional to its tokens
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cache_bytes(batch, middle) <= self.free_bytes else (low, middle - 1)
        return low

    # ---- work -------------------------------------------------------------------------------------------------------

    def _weights(self, rows: int, scored: int) -> Part:
        """Return the part of all weights: everything except the attention scores and their weighted sums.

        Each matrix product reads its input and writes its output once.

        Args:
            rows: tokens in all rows.
            scored: tokens that have logits.
        """
        shape, t = self.shape, self.devices
        read, products, features = shape.dense, rows * shape.dense, rows * shape.features
        read += shape.output
        products += scored * shape.output
        features += scored * (shape.hidden + shape.vocabulary) if shape.output else 0
        touched = 0.0
        if shape.experts:
            e = shape.experts
            touched = e.layers * e.touched(rows) * e.elements
            products += rows * e.layers * e.per_token * e.elements
            features += rows * e.layers * e.per_token * e.features
        weights = (read + touched) / t * BYTES[self.precision.weights] + shape.vectors * BYTES[self.precision.compute]
        return self._part("weights", weights + features / t * BYTES[self.precision.compute], 2 * products / t)

    def _attention(self, nodes: int, batch: int, context: int, causal: bool) -> Part:
        """Return the attention part. Arguments as in `forward`.

        The keys and values of a row are read once for all its nodes, and new ones written; queries are read and
        results written.
        """
        kv = io = pairs = 0.0
        for a in self.shape.attention:
            seen = context + ((nodes + 1) / 2 if causal else nodes)
            cached = min(context, a.window or context) + nodes
            both = a.layers * (a.key + a.value)
            kv += both * self._kv_heads(a) * cached
            io += both * a.query_heads / self.devices * nodes
            pairs += both * a.query_heads / self.devices * nodes * min(seen, a.window or seen)
        read = kv * BYTES[self.precision.kv] + io * BYTES[self.precision.compute]
        return self._part("attention", batch * read, 2 * batch * pairs)

    def _kv_heads(self, a: Attention) -> float:
        return max(a.kv_heads / self.devices, 1)

    def _part(self, name: str, size: float, flops: float) -> Part:
        memory = size / (self.machine.bytes_per_second * self.reach.memory)
        compute = flops / (self.machine.flops_per_second(self.precision.compute) * self.reach.compute)
        return Part(name, size, flops, max(memory, compute), memory >= compute)

    def _communication(self, rows: int, scored: int) -> float:
        t, sums = self.devices, 2 * self.shape.layers
        if t == 1 or not sums:
            return 0.0
        sent = (t - 1) / t * BYTES[self.precision.compute]
        sent *= 2 * sums * rows * self.shape.hidden + scored * self.shape.vocabulary
        return sent / self.machine.link_bytes_per_second(self.link) + (sums + 1) * self.reach.message_seconds


def _bad(what: str, expected: str, got: object, fix: str) -> InputError:
    return InputError(what, expected=expected, got=got, fix=fix)
