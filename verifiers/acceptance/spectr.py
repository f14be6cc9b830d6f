"""k-sequential selection (K-SEQ of SpecTr, Sun et al., arXiv 2310.15141): one test for all k siblings.

Exact for trees whose siblings were drawn with replacement, applied level by level. The paper's approximation
of the optimal transport between k draws from q and one from p: at least 1 - 1/e of the best acceptance
that any rule can reach. Deterministic children share no q: each is a selection of its own with k = 1, and
that is `exact`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.model.runtime.vocabulary import masses
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import Offers, at, children_of, none_of, normalised, ratios, top_down
from verifiers.acceptance.requirements import require_exact_for, require_probabilities

EVALUATIONS = 4  # of beta per node, in search of rho: halve what is left of [1, k] at worst


class SpecTr:
    """Walk from the root. With k children at the current node, and

        beta(rho) = sum_x min(p(x) / rho, q(x)),        the chance that one draw from q is accepted,

    accept child x with probability min(1, p(x) / (rho q(x))), each in turn. After k rejections the next
    token is drawn from

        norm(p - min(p / rho, q) * (1 - (1 - beta)^k) / beta).

    That is a distribution for every rho >= rho*, the fixed point of (1 - (1 - beta)^k) / beta in [1, k], and
    rho* accepts most. So the search for rho* may stop early, as long as it ends above.
    """

    name = "spectr"
    lossless = True
    exact_for = ExactFor(("top_k", "with_replacement"))

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        if tree.probs is None:
            return top_down(tree, target_probs, draws)
        ratio = ratios(tree, target_probs)
        node = torch.zeros_like(tree.tokens[:, 0])  # where each row stands
        selection = None  # among that node's children
        offers = Offers(tree)
        for child in range(1, tree.nodes):
            if offers.nobody(child, node):
                continue
            offered = tree.parents[:, child] == node
            selection = selection or Selection.at_node(tree, target_probs, node)
            accept = (ratio[:, child] / selection.rho).clamp(max=1)
            accepted = draws.bernoulli(torch.where(offered, accept, 0), child)
            if not none_of(accepted):
                node, selection = torch.where(accepted, child, node), None
        selection = selection or Selection.at_node(tree, target_probs, node)
        return Verdict(tree.path_to(node), draws.categorical(selection.after_rejections(), 0))


@dataclass(frozen=True)
class Selection:
    """K-SEQ among k draws from q, in the paper's letters."""

    p: Float[Tensor, "batch vocab"]
    q: Float[Tensor, "batch vocab"]
    k: Float[Tensor, " batch"]
    rho: Float[Tensor, " batch"]
    beta: Float[Tensor, " batch"]

    @classmethod
    def at_node(
        cls, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], node: Int[Tensor, " batch"]
    ) -> Selection:
        """The selection among the children of each row's node, with rho at or a little above rho*."""
        assert tree.probs is not None
        p, q = at(target_probs, node), at(tree.probs, node).to(target_probs)
        k, whole = children_of(tree, node).sum(-1).double(), masses(p)
        low, high = torch.ones_like(k), k.clamp(min=1)
        for _ in range(0 if none_of(k > 1) else EVALUATIONS):
            rho = (low + high) / 2
            # increasing in rho: what it maps rho to lies between rho and the fixed point
            closer = gain(chance(p, q, rho, whole), k)
            above = closer <= rho
            low, high = torch.where(above, low, closer), torch.where(above, closer, high)
        return cls(p, q, k, high, chance(p, q, high, whole))

    def after_rejections(self) -> Float[Tensor, "batch vocab"]:
        """What the next token is drawn from once all k children are rejected; p where there were none."""
        rho, often = (x[:, None].to(self.p) for x in (self.rho, gain(self.beta, self.k)))
        taken = torch.minimum(self.p / rho, self.q).mul_(often)
        return normalised((self.p - taken).relu_(), self.p)


def chance(
    p: Float[Tensor, "batch vocab"],
    q: Float[Tensor, "batch vocab"],
    rho: Float[Tensor, " batch"],
    whole: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """beta(rho), where p sums to `whole`: min(p, rho q) is what relu(p - rho q) leaves of p."""
    return (whole - masses(p, q, rho)) / rho


def gain(beta: Float[Tensor, " batch"], k: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """(1 - (1 - beta)^k) / beta: how much more often one of k draws is accepted than one; k where beta is 0."""
    minus = -beta.clamp(min=torch.finfo(beta.dtype).tiny, max=1)
    return torch.expm1(k * torch.log1p(minus)) / minus
