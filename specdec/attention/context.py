"""AttentionContext: what one forward tells every attention layer about the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from specdec.attention.protocol import PrefixKernel
    from specdec.cache import TreeCache


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
    _visible: dict[int | None, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own = 1 if self.block == 1 else 0
        self.seen = self.lengths + self._own

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

    def visible(self, window: int | None) -> Bool[Tensor, "batch new slots"]:
        """Which cache slots each new node sees: the prefix, its block ancestors, no further back than
        `window` tokens. Computed once per forward and window."""
        if window not in self._visible:
            slots = torch.arange(self.cache.capacity, device=self.lengths.device)
            in_block = slots - self.lengths[:, None]
            index = in_block.clamp(0, self.block - 1)
            spread = index[:, None, :].expand(-1, self.new, -1)
            of_block = self.block_mask().gather(2, spread) & ((in_block >= 0) & (in_block < self.block))[:, None]
            visible = of_block | (in_block < 0)[:, None]
            if window is not None:
                # counted from the block's first node, as in the stock model, wherever positions begin
                steps = self.positions - self.positions[:, :1] + self.lengths[:, None]
                position = torch.where(in_block < 0, slots, steps.gather(1, index))
                own = steps[:, -self.new :]
                visible = visible & (own[:, :, None] - position[:, None, :] < window)
            self._visible[window] = visible
        return self._visible[window]
