"""Rules that are declared lossless and are not: each in a way that was seen somewhere. The proof finds every one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.rejection import at, normalised, ratios, top_down
from verifiers.acceptance.requirements import require_exact_for

Probs = Float[Tensor, "batch nodes vocab"]
ANY, DRAWN = ExactFor(CHILDREN), ExactFor(("with_replacement",))


class KeepsEveryToken:
    """Keeps the longest path, whatever the target says."""

    name, lossless, exact_for = "keeps_every_token", True, ANY

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        node = tree.deepest(tree.valid)
        return Verdict(tree.path_to(node), draws.categorical(at(target_probs, node), 0))


class RecoversFromP:
    """Accepts with probability min(1, p / q) and then draws the next token from p, not from the residual."""

    name, lossless, exact_for = "recovers_from_p", True, DRAWN

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        verdict = top_down(tree, target_probs, WithoutNextToken(draws))
        return Verdict(verdict.path, draws.categorical(at(target_probs, end_of(verdict)), 0))


class BonusFromTheParent:
    """Draws the bonus token from p before the last accepted token: off by one."""

    name, lossless, exact_for = "bonus_from_the_parent", True, DRAWN

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        verdict = top_down(tree, target_probs, WithoutNextToken(draws))
        node = end_of(verdict)
        leaf = ~(tree.parents == node[:, None]).any(1) & (node > 0)
        before = torch.where(leaf, tree.parents.gather(1, node[:, None])[:, 0], node)
        rest = (at(target_probs, node) - at(tree.probs, node)).clamp(min=0) if tree.probs is not None else target_probs
        rest = torch.where(leaf[:, None], at(target_probs, before), normalised(rest, at(target_probs, node)))
        return Verdict(verdict.path, draws.categorical(rest, 0))


class IgnoresQ:
    """Accepts with probability p(x), as of deterministic children, and then recovers from relu(p - q)."""

    name, lossless, exact_for = "ignores_q", True, DRAWN

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        assert tree.probs is not None
        verdict = top_down(TokenTree(tree.tokens, tree.parents), target_probs, WithoutNextToken(draws))
        p, q = at(target_probs, end_of(verdict)), at(tree.probs, end_of(verdict))
        return Verdict(verdict.path, draws.categorical(normalised((p - q).clamp(min=0), p), 0))


class ForgetsTheSibling:
    """Judges children drawn without replacement as if they were independent."""

    name, lossless, exact_for = "forgets_the_sibling", True, ExactFor(("without_replacement",))

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        return top_down(tree, target_probs, draws)


class ResidualNotRenormalised:
    """Offers the second sibling relu(p - q) as it is, whose sum is less than 1."""

    name, lossless, exact_for = "residual_not_renormalised", True, DRAWN

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        assert tree.probs is not None
        node = torch.zeros_like(tree.tokens[:, 0])
        left = at(target_probs, node)
        for child in range(1, tree.nodes):
            offered, q = tree.parents[:, child] == node, at(tree.probs, node)
            x = tree.tokens[:, child, None].clamp(min=0)
            rate = (left.gather(1, x) / q.gather(1, x))[:, 0].nan_to_num(posinf=0).clamp(max=1)
            accepted = draws.bernoulli(torch.where(offered, rate, 0), child)
            left = torch.where((offered & ~accepted)[:, None], (left - q).clamp(min=0), left)
            node = torch.where(accepted, child, node)
            left = torch.where(accepted[:, None], at(target_probs, node), left)
        return Verdict(tree.path_to(node), draws.categorical(normalised(left, at(target_probs, node)), 0))


class LongestOfAllPaths:
    """Accepts every node by itself, and then keeps the longest path of accepted nodes."""

    name, lossless, exact_for = "longest_of_all_paths", True, DRAWN

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        ratio = ratios(tree, target_probs).clamp(max=1)
        accepted = torch.stack([draws.bernoulli(ratio[:, i], i) for i in range(1, tree.nodes)], 1)
        node = tree.deepest(torch.cat([tree.valid[:, :1], accepted], 1))
        assert tree.probs is not None
        rest = (at(target_probs, node) - at(tree.probs, node)).clamp(min=0)
        return Verdict(tree.path_to(node), draws.categorical(normalised(rest, at(target_probs, node)), 0))


class PlainJointRatio:
    """Hierarchical verification (arXiv 2601.05724) as released: the last token is accepted by the joint ratio of the
    whole chain, which the prefixes' ratios are capped by, and it is not."""

    name, lossless, exact_for = "plain_joint_ratio", True, ExactFor(("with_replacement",), siblings=False)

    def __init__(self, capped: bool = False) -> None:
        self.capped = capped

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        assert tree.probs is not None
        n, p, q = tree.nodes - 1, target_probs, tree.probs
        ratio = ratios(tree, p)[:, 1:].cumprod(1)
        before = torch.cat([torch.ones_like(ratio[:, :1]), ratio[:, :-1]], 1)
        cap = before.cummax(1).values.clamp(min=1)
        excess = (before / cap)[..., None] * p[:, :n] - q[:, :n]
        plus, minus = excess.clamp(min=0), (-excess).clamp(min=0)
        stay = (plus.sum(-1) / torch.maximum(plus.sum(-1), minus.sum(-1))).nan_to_num(nan=1.0).clamp(max=1)
        node = torch.where(tree.offered == n, n, tree.offered)
        last = (ratio / (cap if self.capped else 1)).clamp(max=1)
        for k in range(n, 0, -1):
            ends = tree.offered == k
            rate = torch.where(ends, last[:, k - 1], stay[:, k] if k < n else 0.0)
            heads = draws.bernoulli(torch.where(node == k, rate, 0.0), k)
            node = torch.where((node == k) & ~heads, k - 1, node)
        rest = torch.cat([plus, p[:, n:]], 1)
        rest = torch.where((node == tree.offered)[:, None], at(p, node), at(rest, node))
        return Verdict(tree.path_to(node), draws.categorical(normalised(rest, at(p, node)), 0))


class WrongAlone:
    """Right for a batch; one row by itself keeps every token."""

    name, lossless, exact_for = "wrong_alone", True, Exact.exact_for

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        return (KeepsEveryToken() if tree.batch == 1 else Exact()).accept(tree, target_probs, draws)


class DrawsTwice:
    """Asks slot 0 a second time if the first outcome was token 0."""

    name, lossless, exact_for = "draws_twice", True, Exact.exact_for

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        verdict = Exact().accept(tree, target_probs, draws)
        again = draws.categorical(at(target_probs, end_of(verdict)), 0)
        return Verdict(verdict.path, torch.where(verdict.next_token == 0, again, verdict.next_token))


class SkipsANode:
    """Leaves the first accepted node out of the path."""

    name, lossless, exact_for = "skips_a_node", True, Exact.exact_for

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        verdict = Exact().accept(tree, target_probs, draws)
        return Verdict(
            torch.cat([verdict.path[:, :1], verdict.path[:, 2:], verdict.path[:, :0]], 1), verdict.next_token
        )


class TakesWhatItDoesNotDeclare:
    """Exact for what it declares, and silent about trees on which it is not."""

    name, lossless, exact_for = "takes_what_it_does_not_declare", True, Exact.exact_for

    def accept(self, tree: TokenTree, target_probs: Probs, draws: Draws) -> Verdict:
        return top_down(tree, target_probs, draws)


WRONG = [
    KeepsEveryToken(),
    RecoversFromP(),
    BonusFromTheParent(),
    IgnoresQ(),
    ForgetsTheSibling(),
    ResidualNotRenormalised(),
    LongestOfAllPaths(),
    PlainJointRatio(),
    WrongAlone(),
    DrawsTwice(),
    SkipsANode(),
    TakesWhatItDoesNotDeclare(),
]


@dataclass
class WithoutNextToken:
    """Draws that leave the next token to the caller."""

    draws: Draws

    def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
        return self.draws.bernoulli(probs, slot)

    def categorical(self, probs: Tensor, slot: int) -> Tensor:
        return torch.zeros(len(probs), dtype=torch.long)


def end_of(verdict: Verdict) -> Tensor:
    """The last node of each path."""
    return verdict.path.gather(1, (verdict.path >= 0).sum(-1, keepdim=True) - 1)[:, 0]
