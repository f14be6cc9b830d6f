"""Inputs of captured forwards: few shapes serve all node counts.

A forward of n nodes runs as one of 1, 2, 4 ... 64 nodes, or a multiple of 64. The nodes behind the first n are padding:
no node of the first n sees them, because a node sees itself and nodes before it only.

    mask of 3 nodes in a bucket of 4     x . . .      the last row and column hold what an earlier call left there,
                                         x x . .      or the padding itself
                                         x . x .
                                         . . . x
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.model.block import Block
from specdec.trees.tree import PAD

LARGEST = 64  # above it, multiples of it


def bucket(count: int) -> int:
    """Return the node count that `count` nodes are captured at; 0 for 0."""
    if count > LARGEST:
        return -(-count // LARGEST) * LARGEST
    return 1 << (count - 1).bit_length() if count else 0


def padding(block: Block) -> int:
    """Return the number of padding nodes that a block gets."""
    return bucket(block.new) - block.new


Key = tuple[object, ...]


def key(block: Block, more: tuple[Tensor, ...]) -> Key:
    """Return what the shapes of a captured forward depend on.

    Args:
        block: the nodes.
        more: further inputs [batch new ...].
    """
    kept = None if block.logits_at is None else bucket(block.logits_at.shape[1])
    rest = tuple((x.shape[2:], x.dtype) for x in more)
    return len(block.tokens), bucket(block.new), block.size - block.new, block.mask is None, kept, rest


class StaticInputs:
    """The input tensors of one captured forward, into whose front each call copies its own.

    Args:
        block: the first call's nodes.
        more: its further inputs [batch new ...].
    """

    def __init__(self, block: Block, more: tuple[Tensor, ...]) -> None:
        batch, new, earlier = len(block.tokens), bucket(block.new), block.size - block.new
        mask = logits_at = None
        if block.mask is not None:
            own = torch.eye(new, dtype=torch.bool, device=block.mask.device)  # padding sees itself
            mask = torch.nn.functional.pad(own, (earlier, 0)).repeat(batch, 1, 1)
        if block.logits_at is not None:
            logits_at = block.logits_at.new_zeros(batch, bucket(block.logits_at.shape[1]))
        tokens = block.tokens.new_full((batch, new), PAD)
        self.block = Block(tokens, block.positions.new_zeros(batch, earlier + new), mask, logits_at)
        self.more = tuple(x.new_zeros(batch, new, *x.shape[2:]) for x in more)
        self.copy(block, more)

    def copy(self, block: Block, more: tuple[Tensor, ...]) -> None:
        """Copy the inputs of a call, of the same `key`, in place."""
        for static, tensor in zip((*self.block.tensors, *self.more), (*block.tensors, *more), strict=True):
            if static is not None and tensor is not None:
                static[tuple(map(slice, tensor.shape))].copy_(tensor)


def cut(outputs: tuple[Tensor, ...], block: Block) -> tuple[Tensor, ...]:
    """Return the outputs without those of padding.

    The last output is [batch new dim]; one before it is [batch kept vocab].
    """
    kept = block.new if block.logits_at is None else block.logits_at.shape[1]
    sizes = (kept, block.new)[-len(outputs) :]
    return tuple(out[:, :size] for out, size in zip(outputs, sizes, strict=True))
