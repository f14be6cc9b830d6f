"""Growing a token tree level by level from a drafter's distribution q.

What drafters share that have a q: the shape of the tree, and how children are chosen. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.sampling import Draws, draw_without_replacement
from specdec.tree import PAD, TokenTree

CHILDREN = ("with_replacement", "without_replacement", "top_k")

NextQ = Callable[[TokenTree, int], Tensor]  # (tree so far, nodes in its last level) -> q [batch level vocab]


def require_children(children: str) -> None:
    """Refuse an unknown way of choosing children.

    Raises:
        InputError: and names those there are.
    """
    if children not in CHILDREN:
        expected = f"one of {', '.join(CHILDREN)}"
        raise InputError("drafter.children", expected=expected, got=repr(children), fix="choose one")


class TreeShape:
    """A tree whose nodes at each depth all have the same number of children.

    widths: children per node at each depth ([1, 1, 1, 1] is a chain of four, [3, 2] a tree of 3 + 6 nodes);
    children: how they are chosen. `with_replacement` or `without_replacement`: drawn from q, independently or
    never the same token twice; `top_k`: the most likely ones.

    Raises:
        InputError: no widths, one below 1, or an unknown way of choosing.
    """

    def __init__(self, widths: Sequence[int], children: str) -> None:
        if not widths or min(widths) < 1:
            raise InputError(
                "drafter.widths", expected="a list of integers >= 1", got=list(widths), fix="try [1,1,1,1]"
            )
        require_children(children)
        self.widths, self.children = list(widths), children
        self.levels = list(accumulate(widths, mul))  # nodes at depth 1, 2, ...
        parents, before, start = [-1], 0, 1
        for width, level in zip(self.widths, self.levels, strict=True):
            parents += [before + i // width for i in range(level)]
            before, start = start, start + level
        self.parents = torch.tensor(parents)

    @property
    def depth(self) -> int:
        return len(self.widths)

    @property
    def nodes(self) -> int:
        """Root included."""
        return len(self.parents)

    def grow(self, root: Int[Tensor, " batch"], next_q: NextQ, draws: Draws, depth: int, how: str) -> TokenTree:
        """The tree down to `depth`; `how` overrides `children` (at temperature 0 it must be `top_k`).

        Slot i of `draws` decides the token of node i. Where q has fewer tokens than there are children to
        draw without replacement, the tree has padding.
        """
        tokens, q = root[:, None], []
        for width, level in zip(self.widths[:depth], [1, *self.levels][:depth], strict=True):
            q.append(next_q(self._tree(tokens), level))
            tokens = torch.cat([tokens, _children(q[-1], tokens[:, -level:], width, how, draws, tokens.shape[1])], 1)
        tree = self._tree(tokens)
        if how == "top_k" or depth == 0:
            return tree
        inner = sum(level.shape[1] for level in q)
        leaves = q[-1].new_zeros(()).expand(len(root), tree.nodes - inner, q[-1].shape[-1])
        replacement = how == "with_replacement" or max(self.widths) == 1  # an only child has no siblings
        return TokenTree(tree.tokens, tree.parents, torch.cat([*q, leaves], 1), replacement)

    def _tree(self, tokens: Int[Tensor, "batch nodes"]) -> TokenTree:
        parents = self.parents[: tokens.shape[1]].to(tokens.device)
        return TokenTree(tokens, torch.where(tokens >= 0, parents, PAD))


def _children(
    q: Float[Tensor, "batch level vocab"],
    parents: Int[Tensor, "batch level"],
    width: int,
    how: str,
    draws: Draws,
    first: int,
) -> Int[Tensor, "batch children"]:
    """Tokens of the next level, whose nodes are numbered from `first`; padding has no children."""
    groups = []
    for place, (q_parent, parent) in enumerate(zip(q.unbind(1), parents.unbind(1), strict=True)):
        tokens = choose_children(q_parent, width, how, draws, first + place * width)
        is_padding: Bool[Tensor, " batch"] = parent == PAD
        groups.append(tokens.masked_fill(is_padding[:, None], PAD))
    return torch.cat(groups, 1)


def choose_children(
    q: Float[Tensor, "batch vocab"], width: int, how: str, draws: Draws, first: int
) -> Int[Tensor, "batch width"]:
    """Tokens of one node's children, which are numbered from `first`; `how`: one of `CHILDREN`."""
    if how == "top_k":
        return q.topk(width, dim=-1).indices
    if how == "without_replacement":
        return draw_without_replacement(q, width, draws, first)
    return torch.stack([draws.categorical(q, first + i) for i in range(width)], 1)
