"""Shared parts of the rules: ratios, leftovers, and rejection sampling from the root down."""

from __future__ import annotations

from operator import eq

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.model.runtime.vocabulary import leftover, masses, without_tokens
from specdec.trees import transfer
from specdec.trees.tree import PAD, TokenTree


def top_down(
    tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws, replacement: bool = True
) -> Verdict:
    """Walk from the root. Offer each child x of the current node in turn:

        accept x with probability min(1, p(x) / q(x)) and stand on x with the target's p there,
        else p <- norm(relu(p - q)).

    If no child is left, draw the next token from the current p. Without replacement a rejection also changes q to the
    distribution that the next sibling was drawn from: q <- norm(q without x). A deterministic child x is treated as a
    draw from a q that is one-hot at x.

    The current p always has the form s relu(p - c q), so a rejection takes one sum over the vocabulary:

        c <- c + 1 / (s z)              z: mass of q without the rejected siblings
        s <- 1 / sum relu(p - c q)

    Arguments as in `AcceptanceRule.accept`; `replacement` says how siblings were drawn.
    """
    node = torch.zeros_like(tree.tokens[:, 0])  # current node of each row
    ratio = ratios(tree, target_probs)
    s, c, z = ratio.new_ones(tree.batch), ratio.new_zeros(tree.batch), ratio.new_ones(tree.batch)
    offers = Offers(tree)
    for child in range(1, tree.nodes):
        if offers.nobody(child, node):
            continue
        offered = tree.parents[:, child] == node
        rate = (s * z * (ratio[:, child] - c)).clamp(min=0, max=1)
        accepted = draws.bernoulli(torch.where(offered, rate, 0), child)
        rejected = offered & ~accepted
        if not none_of(rejected):
            if tree.probs is not None:
                c = torch.where(rejected, c + 1 / (s * z).clamp(min=1 / HUGE), c)
                if not replacement:
                    z = torch.where(
                        rejected, masses(at(tree.probs, node).to(target_probs), without=tried(tree, node, child)), z
                    )
            s = torch.where(rejected, 1 / untaken_mass(tree, target_probs, node, c, child).clamp(min=1 / HUGE), s)
        if not none_of(accepted):
            node = torch.where(accepted, child, node)
            s, c, z = (torch.where(accepted, fresh, now) for fresh, now in ((1, s), (0, c), (1, z)))
    left = untaken(tree, target_probs, node, c)
    return Verdict(tree.path_to(node), draws.categorical(normalised(left, at(target_probs, node)), 0))


class Offers:
    """Find nodes that are offered to no row, so that they can be skipped.

    Only trees on a CPU are inspected. The parents are read once, so each look is cheap.
    """

    def __init__(self, tree: TokenTree) -> None:
        self._parents = tree.parents.T.tolist() if transfer.on_host(tree.parents) else None

    def nobody(self, child: int, node: Int[Tensor, " batch"]) -> bool:
        """Return whether no row is known to stand at the child's parent. False on a GPU."""
        return self._parents is not None and not any(map(eq, self._parents[child], node.tolist()))


def normalised(
    rest: Float[Tensor, "batch vocab"], otherwise: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Return norm(rest), or `otherwise` for rows in which nothing is left.

    Nothing is left if p equals q up to rounding. Then the rejection that led there had probability 0 up to rounding.
    """
    mass = rest.sum(-1)
    return choose(mass > 0, rest / mass[:, None], otherwise)


def ratios(tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"]) -> Float[Tensor, "batch nodes"]:
    """Return p(x) / q(x) for every node's token x at its parent, in float64.

    Deterministic children have p(x) instead, or 0 if they repeat an earlier sibling. The root has 1, padding 0.
    """
    index = torch.arange(tree.nodes, device=tree.tokens.device)
    at_token = (index.new_tensor(range(tree.batch))[:, None], tree.parents.clamp(min=0), tree.tokens.clamp(min=0))
    ratio = target_probs[at_token].double()
    if tree.probs is not None:
        ratio = quotient(ratio, tree.probs[at_token].to(ratio))
    else:
        same = (tree.tokens[:, :, None] == tree.tokens[:, None]) & (tree.parents[:, :, None] == tree.parents[:, None])
        ratio = ratio.masked_fill((same & (index[:, None] > index)).any(-1), 0.0)
    return torch.where(index == 0, 1.0, ratio.masked_fill(~tree.valid, 0.0))


HUGE = 1e30  # larger than any ratio that matters, and far below the largest number of fp32


def quotient(p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return p / q, or 0 where q is 0, because nothing can have been drawn there."""
    return torch.where(q > 0, p / q, 0.0).clamp(max=HUGE)


def children_of(tree: TokenTree, node: Int[Tensor, " batch"] | int) -> Bool[Tensor, "batch nodes"]:
    """Return the mask of the children of each row's node."""
    parent = node if isinstance(node, int) else node[:, None]
    return tree.valid & (tree.parents == parent)


def untaken(
    tree: TokenTree,
    target_probs: Float[Tensor, "batch nodes vocab"],
    node: Int[Tensor, " batch"] | int,
    times: Float[Tensor, " batch"],
) -> Float[Tensor, "batch vocab"]:
    """Return what is left of p at each row's node: relu(p - times q).

    For deterministic children it is p with 0 at the tokens of the node's children.

    Args:
        tree: the tree to judge.
        target_probs: p after each node.
        node: the node of each row, or one for all.
        times: multiple of q to subtract from p, per row.
    """
    p = at(target_probs, node)
    if tree.probs is None:
        return without_tokens(p, tried(tree, node))
    return leftover(p, at(tree.probs, node).to(p), times)


def untaken_mass(
    tree: TokenTree,
    target_probs: Float[Tensor, "batch nodes vocab"],
    node: Int[Tensor, " batch"] | int,
    times: Float[Tensor, " batch"],
    last: Int[Tensor, " batch"] | int | None = None,
) -> Float[Tensor, " batch"]:
    """Return the sum of `untaken` over the vocabulary, in float64.

    Arguments as in `untaken`; of deterministic children only those up to the child `last` are set to 0.
    """
    p = at(target_probs, node)
    if tree.probs is None:
        return masses(p, without=tried(tree, node, last))
    return masses(p, at(tree.probs, node).to(p), times)


def tried(
    tree: TokenTree, node: Int[Tensor, " batch"] | int, last: Int[Tensor, " batch"] | int | None = None
) -> Int[Tensor, "batch nodes"]:
    """Return the tokens of the children of each row's node, up to the child `last`; -1 at all other nodes."""
    found = children_of(tree, node)
    if last is not None:
        index = torch.arange(tree.nodes, device=found.device)
        found = found & (index <= (last if isinstance(last, int) else last[:, None]))
    return torch.where(found, tree.tokens, PAD)


def at(x: Tensor, node: Int[Tensor, " batch"] | int) -> Tensor:
    """Return entry `node[b]` of row b of x [batch nodes ...]; a view if all rows are known to have the same node."""
    if not isinstance(node, int) and len(x) == 1 and transfer.on_host(x):
        node = int(node)
    return x[:, node] if isinstance(node, int) else x[torch.arange(len(x), device=x.device), node]


def none_of(rows: Bool[Tensor, " batch"]) -> bool:
    """Return whether no row is known to be marked.

    False on a GPU, where looking would wait for the device; all rows are computed instead.
    """
    return transfer.on_host(rows) and not bool(rows.any())


def nobody_at(node: Int[Tensor, " batch"], i: int) -> bool:
    """Return whether no row is known to stand at node i. False on a GPU."""
    return transfer.on_host(node) and i not in node.tolist()


def choose(
    rows: Bool[Tensor, " batch"], yes: Float[Tensor, "batch vocab"], no: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """Return `yes` in the marked rows and `no` in the others, without a copy if all are known to be marked."""
    if transfer.on_host(rows) and bool(rows.all()):
        return yes
    return torch.where(rows[:, None], yes, no)
