"""Grow a token tree of fixed shape, level by level, from a drafter's distribution q.

Also the parts that all drafters with a q share: how children are chosen, and q of a level. Depends on no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.decoding.sampling import Draws, SamplingParams, draw_without_replacement
from specdec.errors import InputError
from specdec.trees.tree import PAD, TokenTree, histories

CHILDREN = ("with_replacement", "without_replacement", "top_k")

NextQ = Callable[[TokenTree, int], Tensor]  # (tree so far, nodes in its last level) -> q [batch level vocab]


def require_children(children: str) -> None:
    """Refuse an unknown way of choosing children.

    Raises:
        InputError: names the known ones.
    """
    if children not in CHILDREN:
        expected = f"one of {', '.join(CHILDREN)}"
        raise InputError("drafter.children", expected=expected, got=repr(children), fix="choose one")


def require_ranked(tree: TokenTree, drafter: object, what: str) -> None:
    """Refuse a tree whose children were drawn if nodes are to be left out of it, because q would no longer be the
    distribution that produced the rest.

    `what`: name used in error messages.

    Raises:
        InputError: names the drafter.
    """
    if tree.probs is not None:
        name, expected = type(drafter).__name__, "drafters whose children are chosen by rank"
        raise InputError(what, expected=expected, got=f"{name}, which drew them", fix=f"give {name} children=top_k")


class TreeShape:
    """A tree in which all nodes at one depth have the same number of children.

    Args:
        widths: children per node at each depth ([1, 1, 1, 1] is a chain of four, [3, 2] a tree of 3 + 6 nodes).
        children: how they are chosen. `with_replacement`: drawn from q independently. `without_replacement`: drawn from
            q, never the same token twice. `top_k`: the most likely tokens.

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
        """Number of nodes, root included."""
        return len(self.parents)

    def grow(
        self,
        root: Int[Tensor, " batch"],
        next_q: NextQ,
        draws: Draws,
        depth: int,
        how: str,
        threshold: float = 0.0,
    ) -> TokenTree:
        """Grow the tree down to `depth`.

        If q has too few tokens to draw all children without replacement, the tree has padding.

        Args:
            root: last committed token of each row.
            next_q: maps the tree so far to q after the nodes of its last level.
            draws: slot i decides the token of node i.
            depth: number of levels.
            how: how children are chosen, in place of `children`. At temperature 0 it must be `top_k`.
            threshold: a node whose path was drawn with a smaller probability stays but gets no children. The decision
                does not depend on anything below the node, so q stays the distribution that children were drawn from.
        """
        tokens, q = root[:, None], []
        path = torch.ones_like(tokens, dtype=torch.float32)
        confidence = [path]
        for width, level in zip(self.widths[:depth], [1, *self.levels][:depth], strict=True):
            closed = (tokens[:, -level:] == PAD) | (path < threshold)
            if threshold and bool(closed.all()):
                break
            q.append(next_q(self._tree(tokens), level))
            children = _children(q[-1], closed, width, how, draws, tokens.shape[1])
            tokens = torch.cat([tokens, children], 1)
            drawn = q[-1].gather(2, children.clamp(min=0).unflatten(1, (level, width)))
            path = (path[..., None] * drawn).flatten(1)
            confidence.append(drawn.flatten(1).float())
        tree = self._tree(tokens)
        if how == "top_k" or not q:
            return replace(tree, confidence=torch.cat(confidence, 1))
        inner = sum(level.shape[1] for level in q)
        leaves = q[-1].new_zeros(()).expand(len(root), tree.nodes - inner, q[-1].shape[-1])
        replacement = how == "with_replacement" or max(self.widths) == 1  # an only child has no siblings
        return TokenTree(tree.tokens, tree.parents, torch.cat([*q, leaves], 1), replacement)

    def _tree(self, tokens: Int[Tensor, "batch nodes"]) -> TokenTree:
        if self.parents.device != tokens.device:
            self.parents = self.parents.to(tokens.device)  # once: the copy waits for the device
        parents = self.parents[: tokens.shape[1]]
        return TokenTree(tokens, torch.where(tokens >= 0, parents, PAD))


def _children(
    q: Float[Tensor, "batch level vocab"],
    closed: Bool[Tensor, "batch level"],
    width: int,
    how: str,
    draws: Draws,
    first: int,
) -> Int[Tensor, "batch children"]:
    """Choose the tokens of the next level. A closed node gets no children.

    Args:
        q: distributions after the nodes of the last level.
        closed: which of these nodes get no children.
        width: children per node.
        how: one of `CHILDREN`.
        draws: random draws.
        first: number of the first child.
    """
    groups = []
    for place, (q_parent, is_closed) in enumerate(zip(q.unbind(1), closed.unbind(1), strict=True)):
        tokens = choose_children(q_parent, width, how, draws, first + place * width)
        groups.append(tokens.masked_fill(is_closed[:, None], PAD))
    return torch.cat(groups, 1)


def choose_children(
    q: Float[Tensor, "batch vocab"], width: int, how: str, draws: Draws, first: int
) -> Int[Tensor, "batch width"]:
    """Choose the tokens of one node's children.

    If fewer tokens are possible than children are wanted, the rest is padding (except for children drawn with
    replacement).

    Args:
        q: distribution of the children.
        width: number of children.
        how: one of `CHILDREN`.
        draws: random draws.
        first: number of the first child.
    """
    if how == "top_k":
        best = q.topk(min(width, q.shape[-1]), dim=-1)
        possible = best.indices.where(best.values > 0, PAD)
        return torch.nn.functional.pad(possible, (0, width - possible.shape[1]), value=PAD)
    if how == "without_replacement":
        return draw_without_replacement(q, width, draws, first)
    return torch.stack([draws.categorical(q, first + i) for i in range(width)], 1)


def level_q(
    logits: Float[Tensor, "batch level vocab"],
    known: TokenTree,
    rows: Sequence[Sequence[int]],
    sampling: SamplingParams,
) -> Float[Tensor, "batch level vocab"]:
    """Return q after each node of the known tree's last level, penalties for each node's own text included.

    Children are drawn from it. At temperature 0 q is one-hot and cannot rank children, so q at temperature 1 is
    returned.

    Args:
        logits: the drafter's logits after these nodes.
        known: the tree so far.
        rows: committed tokens, the root last.
        sampling: how tokens are chosen.
    """
    batch, level, vocab = logits.shape
    before = None
    if sampling.needs_history:
        every, last = histories(known, rows), range(known.nodes - level, known.nodes)
        before = [every[r * known.nodes + node] for r in range(batch) for node in last]
    flat = logits.reshape(-1, vocab)
    made = sampling.scores(flat, before, lenient=True)
    q = made.softmax(-1) if sampling.greedy else sampling.distribution(made)
    return q.view(batch, level, vocab)


def level_q_among(
    logits: Float[Tensor, "batch level rows"],
    vocabulary: Int[Tensor, " rows"] | None,
    vocab: int,
    known: TokenTree,
    rows: Sequence[Sequence[int]],
    sampling: SamplingParams,
) -> Float[Tensor, "batch level rows"]:
    """Return `level_q` for the tokens of a draft vocabulary only, as `DynamicTree` ranks them, without writing out
    zeros.

    Args:
        logits: the drafter's logits, over the draft vocabulary.
        vocabulary: its token ids; None for all tokens.
        vocab: number of tokens of the target.
        known: as in `level_q`.
        rows: as in `level_q`.
        sampling: as in `level_q`.
    """
    if vocabulary is None or not sampling.needs_history:
        return level_q(logits, known, rows, sampling)
    return level_q(over_all_tokens(logits, vocabulary, vocab), known, rows, sampling)[..., vocabulary]


def over_all_tokens(
    logits: Float[Tensor, "batch level rows"], vocabulary: Int[Tensor, " rows"] | None, vocab: int
) -> Float[Tensor, "batch level vocab"]:
    """Place the logits of a draft vocabulary among those of all tokens. The others are minus infinity."""
    if vocabulary is None:
        return logits
    whole = logits.new_full((*logits.shape[:2], vocab), -torch.inf)
    return whole.index_copy(2, vocabulary, logits)


def already_read(
    read: Int[Tensor, "batch nodes"], path: Int[Tensor, "batch kept"]
) -> tuple[Int[Tensor, "batch kept"], list[int]]:
    """Return how far a drafter's own cache reaches along an accepted path.

    Path nodes that are not of this drafter's tree (in a union, another drafter proposed them) have numbers beyond it.

    read: each node's slot in the drafter's block; -1 if it was not run.

    Returns:
        The slot of each node on the path, -1 from the first that was not run; and the number of slots per row.
    """
    inside = (path >= 0) & (path < read.shape[1])
    slots = read.gather(1, path.clamp(0, read.shape[1] - 1)).where(inside, PAD)
    slots = slots.where((slots >= 0).int().cumprod(1).bool(), PAD)
    return slots, (slots >= 0).sum(1).tolist()
