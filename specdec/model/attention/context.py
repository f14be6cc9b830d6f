"""AttentionContext: the description of the tree that one forward gives to every attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from specdec.model.attention.protocol import Kernel
    from specdec.model.cache import TreeCache


@dataclass
class AttentionContext:
    """The new tokens of one forward, and their positions.

        cache slots of row b   [ committed prefix | earlier nodes | new nodes | free ]
                               0                  ^                           ^
                                                  lengths[b]                  lengths[b] + block

    In the prefix, slot = position. The block holds the nodes of the tree being built. A forward computes its last `new`
    nodes. The earlier ones (`block - new`) are already cached by earlier forwards of the same block (a draft model
    grows its tree level by level).

    A block of one node sees the prefix and itself. It is treated as a prefix that is one longer (`seen`, `host_seen`),
    in one part instead of two.

    Args:
        kernel: attention kernel of the prefix.
        cache: the cache of this forward.
        lengths: committed tokens of each row.
        host_lengths: `lengths` on the host, known without waiting for the device. Only a CPU kernel may read it,
            because a captured CUDA graph is replayed at other lengths.
        positions: [batch block], absolute positions of the block's nodes (prefix + depth).
        new: number of new nodes.
        mask: [batch new block], which block nodes a new node sees; None for causal (then new == block).
        prefix: False only if no row has any committed token (the start of a prompt).
        intervals: masks given to layers of this forward that hide only the first slots of the prefix from a node (a
            sliding window, chunks).
        scratch: what a kernel computes once per forward for a mask of a layer.
    """

    kernel: Kernel
    cache: TreeCache
    lengths: Int[Tensor, " batch"]
    host_lengths: Sequence[int]
    positions: Int[Tensor, "batch block"]
    new: int
    mask: Bool[Tensor, "batch new block"] | None
    prefix: bool = True
    intervals: list[Tensor] = field(default_factory=list, repr=False)
    scratch: list[tuple[Tensor | None, Any]] = field(default_factory=list, repr=False)
    _visible: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._own = 1 if self.block == 1 else 0
        self.seen = self.lengths + self._own

    @cached_property
    def nothing_seen(self) -> Bool[Tensor, "batch one one"]:
        """Which rows have no key before the block."""
        return (self.seen == 0)[:, None, None]

    @property
    def host_seen(self) -> list[int]:
        return [length + self._own for length in self.host_lengths]

    @property
    def block(self) -> int:
        return self.positions.shape[1]

    def block_mask(self) -> Bool[Tensor, "batch new block"]:
        """Return `mask`; the causal mask is written out."""
        if self.mask is not None:
            return self.mask
        return (
            torch.ones(self.new, self.block, dtype=torch.bool, device=self.lengths.device)
            .tril()
            .expand(len(self.lengths), -1, -1)
        )

    @property
    def slots(self) -> int:
        """Number of cache slots that dense attention reads: those in use, or all of them in a forward that must not
        read a length on the host."""
        return max(self.host_lengths) + self.block if self.kernel.on_host else self.cache.capacity

    def visible(self) -> Bool[Tensor, "batch new slots"]:
        """Return which cache slots each new node sees: the prefix and its block ancestors. Computed once per
        forward."""
        if self._visible is None:
            in_block, index = self._in_block()
            spread = index[:, None, :].expand(-1, self.new, -1)
            of_block = self.block_mask().gather(2, spread) & ((in_block >= 0) & (in_block < self.block))[:, None]
            self._visible = of_block | (in_block < 0)[:, None]
        return self._visible

    def is_interval(self, mask: Tensor) -> bool:
        """Whether a layer's mask is one of `intervals`, unchanged."""
        return any(mask is known for known in self.intervals)

    def in_block(self, mask: Bool[Tensor, "batch new slots"]) -> Bool[Tensor, "batch new block"]:
        """Return the columns of the block's slots."""
        slots = self.lengths[:, None] + torch.arange(self.block, device=self.lengths.device)
        return mask.gather(2, slots[:, None].expand(-1, mask.shape[1], -1))

    @property
    def offsets(self) -> Int[Tensor, "batch block"]:
        """Number of tokens before each block node in its own text. The stock model's cache would hold the node at this
        index, wherever positions begin."""
        return self.positions - self.positions[:, :1] + self.lengths[:, None]

    def slot_offsets(self) -> Int[Tensor, "batch slots"]:
        """Return `offsets` of the token in each slot. Undefined behind the block."""
        in_block, index = self._in_block()
        slots = torch.arange(self.slots, device=self.lengths.device)
        return torch.where(in_block < 0, slots, self.offsets.gather(1, index))

    def _in_block(self) -> tuple[Int[Tensor, "batch slots"], Int[Tensor, "batch slots"]]:
        """Return each slot's number in the block (negative for the prefix), and that number clamped to the block."""
        in_block = torch.arange(self.slots, device=self.lengths.device) - self.lengths[:, None]
        return in_block, in_block.clamp(0, self.block - 1)
