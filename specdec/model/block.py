"""Block: the nodes that one forward computes, and TargetOutput: its result.

    slots of a row   [ committed prefix | earlier nodes | new nodes | free ]
                     0                  ^                           ^
                                        lengths[b]                  lengths[b] + size

The earlier nodes were cached by earlier forwards of the same block: a draft model grows its tree level by level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.trees.tree import TokenTree

if TYPE_CHECKING:
    from specdec.model.cache import TreeCache


@dataclass(frozen=True)
class Block:
    """The last `new` nodes of a block of `size` nodes behind each row's committed prefix.

    Args:
        tokens: tokens of the new nodes. -1 is padding, whose results are undefined.
        positions: positions of all nodes of the block.
        mask: which nodes of the block each new node sees; None for a causal chain.
        logits_at: the new nodes to compute logits for; None for all.
    """

    tokens: Int[Tensor, "batch new"]
    positions: Int[Tensor, "batch size"]
    mask: Bool[Tensor, "batch new size"] | None = None
    logits_at: Int[Tensor, "batch kept"] | None = None

    @classmethod
    def chain(
        cls, cache: TreeCache, tokens: Int[Tensor, "batch new"], logits_at: Int[Tensor, "batch kept"] | None = None
    ) -> Block:
        """Return a causal chain that continues each row's prefix."""
        positions = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        return cls(tokens, positions, None, logits_at)

    @classmethod
    def of_tree(cls, cache: TreeCache, tree: TokenTree, new: int | None = None) -> Block:
        """Return the last `new` nodes of a tree whose root follows the prefix; None for all nodes."""
        first = 0 if new is None else tree.nodes - new
        return cls(tree.tokens[:, first:], cache.lengths[:, None] + tree.depth, tree.ancestor_mask[:, first:])

    @classmethod
    def below_root(cls, cache: TreeCache, tree: TokenTree, new: int) -> Block:
        """Return the last `new` nodes of a tree whose root is the last node of the prefix.

        The block begins with the nodes of depth 1. Padding is read too, but no node attends to it.
        """
        positions = cache.lengths[:, None] + (tree.depth[:, 1:] - 1).clamp(min=0)
        return cls(tree.tokens[:, -new:], positions, tree.ancestor_mask[:, -new:, 1:])

    @property
    def new(self) -> int:
        return self.tokens.shape[1]

    @property
    def size(self) -> int:
        return self.positions.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The fields in order; `Block(*tensors)` is the same block."""
        return self.tokens, self.positions, self.mask, self.logits_at


@dataclass(frozen=True)
class TargetOutput:
    """The result of a forward.

    Args:
        logits: [batch kept vocab].
        hidden: the last hidden states, after the final norm, [batch new dim]: the input of the output layer and of
            Medusa heads.
        residual: the residual stream after the exit layer, [batch new dim]; None without an exit layer.
    """

    logits: Float[Tensor, "batch kept vocab"]
    hidden: Float[Tensor, "batch new dim"]
    residual: Float[Tensor, "batch new dim"] | None = None
