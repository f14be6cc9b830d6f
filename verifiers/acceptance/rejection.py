"""What the rules share: ratios, leftovers, and rejection sampling from the root down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.protocols import Verdict
from specdec.sampling import Draws
from specdec.tree import TokenTree

AfterRejection = Callable[[Tensor, Tensor], Tensor]


def top_down(
    tree: TokenTree,
    target_probs: Float[Tensor, "batch nodes vocab"],
    draws: Draws,
    after_rejection: AfterRejection = lambda q, x: q,
) -> Verdict:
    """Walk from the root. Offer each child x of the current node in turn:

        accept x with probability min(1, p(x) / q(x)) and stand on x with the target's p there,
        else p <- norm(relu(p - q)) and q <- after_rejection(q, x).

    Where no child is left, the next token is drawn from what p has become. Children chosen
    deterministically are each a draw from a q that is one-hot at x.
    """
    node = torch.zeros_like(tree.tokens[:, 0])  # where each row stands
    p, q = target_probs[:, 0], None if tree.probs is None else tree.probs[:, 0].to(target_probs)
    offers = Offers(tree)
    for child in range(1, tree.nodes):
        if offers.nobody(child, node):
            continue
        offered = tree.parents[:, child] == node
        x = tree.tokens[:, child, None].clamp(min=0)
        ratio = p.gather(1, x) if q is None else quotient(p.gather(1, x), q.gather(1, x))
        accepted = draws.bernoulli(torch.where(offered, ratio[:, 0].clamp(max=1), 0), child)
        rejected = offered & ~accepted
        if not none_of(
            rejected & (ratio[:, 0] > 0) if q is None else rejected
        ):  # a one-hot q takes nothing from p(x) = 0
            rest = p.scatter(1, x, 0.0) if q is None else leftover(p, q, torch.ones_like(p[:, 0]))
            p = choose(rejected, normalised(rest, p), p)
            q = None if q is None else choose(rejected, after_rejection(q, x), q)
        if not none_of(accepted):
            p = choose(accepted, target_probs[:, child], p)
            q = None if q is None or tree.probs is None else choose(accepted, tree.probs[:, child].to(p), q)
            node = torch.where(accepted, child, node)
    return Verdict(tree.path_to(node), draws.categorical(p, 0))


class Offers:
    """Which nodes are offered to rows that stand at their parents. Looking costs nothing on a CPU, and next to
    nothing if the tree has been read once."""

    def __init__(self, tree: TokenTree) -> None:
        self._parents = tree.parents.tolist() if tree.parents.device.type == "cpu" else None

    def nobody(self, child: int, node: Int[Tensor, " batch"]) -> bool:
        """Whether it is known that no row stands at the child's parent."""
        if self._parents is None:
            return False
        return not any(row[child] == stand for row, stand in zip(self._parents, node.tolist(), strict=True))


def leftover(
    p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"], times: Float[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """relu(p - times q): what is left of p once q has been offered that many times."""
    return torch.addcmul(p, q, times[:, None], value=-1).relu_()


def normalised(
    rest: Float[Tensor, "batch vocab"], otherwise: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """norm(rest). Where nothing is left (p equals q up to rounding) `otherwise`: what led there had
    probability 0 up to rounding."""
    mass = rest.sum(-1)
    return choose(mass > 0, rest / mass[:, None], otherwise)


def ratios(tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"]) -> Float[Tensor, "batch nodes"]:
    """p(x) / q(x) of every node's token x at its parent; p(x) alone where children are deterministic. The
    root has 1, and padding 0; so has a deterministic child that repeats an earlier one."""
    index = torch.arange(tree.nodes, device=tree.tokens.device)
    at_token = (index.new_tensor(range(tree.batch))[:, None], tree.parents.clamp(min=0), tree.tokens.clamp(min=0))
    ratio = target_probs[at_token]
    if tree.probs is not None:
        ratio = quotient(ratio, tree.probs[at_token].to(ratio))
    else:
        same = (tree.tokens[:, :, None] == tree.tokens[:, None]) & (tree.parents[:, :, None] == tree.parents[:, None])
        ratio = ratio.masked_fill((same & (index[:, None] > index)).any(-1), 0.0)
    return torch.where(index == 0, 1.0, ratio.masked_fill(~tree.valid, 0.0)).to(target_probs)


HUGE = 1e30  # larger than any ratio that matters, and far enough from fp32's largest number


def quotient(p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """p / q; 0 where q is 0, as nothing can have been drawn there."""
    return torch.where(q > 0, p / q, 0.0).clamp(max=HUGE)


def children_of(tree: TokenTree, node: Int[Tensor, " batch"] | int) -> Bool[Tensor, "batch nodes"]:
    """Which nodes are children of the given one, for each row."""
    parent = node if isinstance(node, int) else node[:, None]
    return tree.valid & (tree.parents == parent)


def untaken(
    tree: TokenTree,
    target_probs: Float[Tensor, "batch nodes vocab"],
    node: Int[Tensor, " batch"] | int,
    times: Float[Tensor, " batch"],
    last: Int[Tensor, " batch"] | int | None = None,
) -> Float[Tensor, "batch vocab"]:
    """What is left of p at each row's node: relu(p - times q). Where children are deterministic, p with 0 at the
    tokens of the node's children (up to the child `last`)."""
    p = at(target_probs, node)
    if tree.probs is not None:
        return leftover(p, at(tree.probs, node).to(p), times)
    return without_tokens(p, tree.tokens, tried(tree, node, last))


def tried(
    tree: TokenTree, node: Int[Tensor, " batch"] | int, last: Int[Tensor, " batch"] | int | None = None
) -> Tensor:
    """Which nodes are children of the given one (up to the child `last`), for each row."""
    found = children_of(tree, node)
    if last is None:
        return found
    return found & (torch.arange(tree.nodes, device=found.device) <= (last if isinstance(last, int) else last[:, None]))


def without_tokens(
    p: Float[Tensor, "batch vocab"], tokens: Int[Tensor, "batch nodes"], gone: Bool[Tensor, "batch nodes"]
) -> Float[Tensor, "batch vocab"]:
    """p with 0 at the marked tokens."""
    one_of_them = torch.where(gone, tokens, 0).amax(1, keepdim=True)  # repeated, where nothing is marked
    index = torch.where(gone, tokens, one_of_them)
    return p.scatter(1, index, torch.where(gone.any(1, keepdim=True), 0.0, p.gather(1, index)).to(p))


def at(x: Tensor, node: Int[Tensor, " batch"] | int) -> Tensor:
    """Row b's entry `node[b]` of x [batch nodes ...]; a view where all rows mean the same node."""
    return x[:, node] if isinstance(node, int) else x[torch.arange(len(x), device=x.device), node]


def none_of(rows: Bool[Tensor, " batch"]) -> bool:
    """Whether it is known that no row is meant. Looking costs nothing on a CPU; on a GPU it would wait for the
    device, and every row is worked on instead."""
    return rows.device.type == "cpu" and not bool(rows.any())


def nobody_at(node: Int[Tensor, " batch"], i: int) -> bool:
    """Whether it is known that no row stands at node i."""
    return node.device.type == "cpu" and i not in node.tolist()


def choose(
    rows: Bool[Tensor, " batch"], yes: Float[Tensor, "batch vocab"], no: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """`yes` in the marked rows, `no` in the others; no copy where all are seen to be marked."""
    if rows.device.type == "cpu" and bool(rows.all()):
        return yes
    return torch.where(rows[:, None], yes, no)


def deepest(tree: TokenTree, accepted: Bool[Tensor, "batch nodes"]) -> Int[Tensor, " batch"]:
    """The end of the longest path of accepted nodes; the first of equally long ones. The root always is."""
    index = torch.arange(tree.nodes, device=tree.tokens.device)
    refused = ~(accepted & tree.valid) & (index > 0)
    reached = ~(tree.ancestor_mask & refused[:, None]).any(-1)
    return torch.where(reached, tree.depth, -1).argmax(-1)
