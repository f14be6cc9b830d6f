"""AttentionContext: what one forward tells every attention layer about the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from specdec.model.attention.protocol import PrefixKernel
    from specdec.model.cache import TreeCache


@dataclass
class AttentionContext:
    """New tokens of one forward, and where they stand.

    Cache slots of row b:  [0, lengths[b])                  committed prefix, slot = position
                           [lengths[b], + block)            the block: nodes of the tree being built
    A forward brings the block's last `new` nodes; the ones before them (`block - new`) are cached by
    earlier forwards of the same block (a draft model grows its tree level by level).

    mask       [batch new block]  which block nodes a new node sees; None: causal (then new == block)
    positions  [batch block]      absolute positions of the block's nodes (prefix + depth)
    host_lengths  the same as `lengths`, known on the host without waiting for the device. Only a CPU kernel may
               read it: what is captured as a CUDA graph is replayed at other lengths
    prefix     False only when nothing is committed in any row (the start of a prompt)

    A block of one node sees the prefix and itself: it is attended to as a prefix that is one longer
    (`seen`, `host_seen`), in one part instead of two.
    """

    kernel: PrefixKernel
    cache: TreeCache
    lengths: Int[Tensor, " batch"]
    host_lengths: Sequence[int]
    positions: Int[Tensor, "batch block"]
    new: int
    mask: Bool[Tensor, "batch new block"] | None
    prefix: bool = True
    _visible: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._own = 1 if self.block == 1 else 0
        self.seen = self.lengths + self._own

    @cached_property
    def nothing_seen(self) -> Bool[Tensor, "batch one one"]:
        """Rows without any key before the block."""
        return (self.seen == 0)[:, None, None]

    @property
    def host_seen(self) -> list[int]:
        return [length + self._own for length in self.host_lengths]

    @property
    def block(self) -> int:
        return self.positions.shape[1]

    def block_mask(self) -> Bool[Tensor, "batch new block"]:
        """`mask`, with the causal one written out."""
        if self.mask is not None:
            return self.mask
        return (
            torch.ones(self.new, self.block, dtype=torch.bool, device=self.lengths.device)
            .tril()
            .expand(len(self.lengths), -1, -1)
        )

    @property
    def slots(self) -> int:
        """How many cache slots dense attention looks at: those in use, or all of them in a forward that must not read
        a length on the host."""
        return max(self.host_lengths) + self.block if self.kernel.on_host else self.cache.capacity

    def visible(self) -> Bool[Tensor, "batch new slots"]:
        """Which cache slots each new node sees: the prefix and its block ancestors. Computed once per forward."""
        if self._visible is None:
            in_block, index = self._in_block()
            spread = index[:, None, :].expand(-1, self.new, -1)
            of_block = self.block_mask().gather(2, spread) & ((in_block >= 0) & (in_block < self.block))[:, None]
            self._visible = of_block | (in_block < 0)[:, None]
        return self._visible

    @property
    def offsets(self) -> Int[Tensor, "batch block"]:
        """Tokens before each node of the block in its own text: where the stock model's cache would hold it, wherever
        positions begin."""
        return self.positions - self.positions[:, :1] + self.lengths[:, None]

    def slot_offsets(self) -> Int[Tensor, "batch slots"]:
        """The same of the token in each slot; undefined behind the block."""
        in_block, index = self._in_block()
        slots = torch.arange(self.slots, device=self.lengths.device)
        return torch.where(in_block < 0, slots, self.offsets.gather(1, index))

    def _in_block(self) -> tuple[Int[Tensor, "batch slots"], Int[Tensor, "batch slots"]]:
        """Each slot's number in the block (negative: prefix), and that number cut to the block."""
        in_block = torch.arange(self.slots, device=self.lengths.device) - self.lengths[:, None]
        return in_block, in_block.clamp(0, self.block - 1)
