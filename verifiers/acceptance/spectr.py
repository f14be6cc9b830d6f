"""k-sequential selection: one test for all k siblings (K-SEQ of SpecTr, Sun et al., arXiv 2310.15141).

The rule is exact for trees whose siblings were drawn with replacement; it is applied level by level. It approximates
the optimal transport between k draws from q and one draw from p, and reaches at least 1 - 1/e of the best acceptance of
any rule. Deterministic children share no q, so each is a selection of its own with k = 1, which is the rule `exact`.
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

EVALUATIONS = (
    4  # evaluations of beta per node in the search for rho; each at least halves the interval, at first [1, k]
)


class SpecTr:
    """Walk from the root. Let the current node have k children, and let

        beta(rho) = sum_x min(p(x) / rho, q(x)),        the chance that one draw from q is accepted.

    Accept each child x in turn with probability min(1, p(x) / (rho q(x))). After k rejections draw the next token from

        norm(p - min(p / rho, q) * (1 - (1 - beta)^k) / beta).

    This is a distribution for every rho >= rho*, the fixed point of (1 - (1 - beta)^k) / beta in [1, k]. rho* accepts
    most. The search for it may stop early if the result is not below rho*.
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
        node = torch.zeros_like(tree.tokens[:, 0])  # current node of each row
        selection = None  # among the children of that node
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
    """K-SEQ among k draws from q, with the paper's symbols.

    Args:
        p: the target's distribution at the node.
        q: the distribution that the children were drawn from.
        k: number of children.
        rho: divisor of the acceptance test, >= rho*.
        beta: beta(rho), the chance that one draw is accepted.
    """

    p: Float[Tensor, "batch vocab"]
    q: Float[Tensor, "batch vocab"]
    k: Float[Tensor, " batch"]
    rho: Float[Tensor, " batch"]
    beta: Float[Tensor, " batch"]

    @classmethod
    def at_node(
        cls, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], node: Int[Tensor, " batch"]
    ) -> Selection:
        """Return the selection among the children of each row's node, with rho equal to rho* or slightly above."""
        assert tree.probs is not None
        p, q = at(target_probs, node), at(tree.probs, node).to(target_probs)
        k, whole = children_of(tree, node).sum(-1).double(), masses(p)
        low, high = torch.ones_like(k), k.clamp(min=1)
        for _ in range(0 if none_of(k > 1) else EVALUATIONS):
            rho = (low + high) / 2
            # gain(chance(rho)) increases with rho, so its value lies between rho and the fixed point
            closer = gain(chance(p, q, rho, whole), k)
            above = closer <= rho
            low, high = torch.where(above, low, closer), torch.where(above, closer, high)
        return cls(p, q, k, high, chance(p, q, high, whole))

    def after_rejections(self) -> Float[Tensor, "batch vocab"]:
        """Return the distribution of the next token after k rejections, p if the node has no children."""
        rho, often = (x[:, None].to(self.p) for x in (self.rho, gain(self.beta, self.k)))
        taken = torch.minimum(self.p / rho, self.q).mul_(often)
        return normalised((self.p - taken).relu_(), self.p)


def chance(
    p: Float[Tensor, "batch vocab"],
    q: Float[Tensor, "batch vocab"],
    rho: Float[Tensor, " batch"],
    whole: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return beta(rho), computed as sum_x (p - relu(p - rho q)) / rho.

    Args:
        p, q: the distributions.
        rho: divisor of the acceptance test.
        whole: the sum of p.
    """
    return (whole - masses(p, q, rho)) / rho


def gain(beta: Float[Tensor, " batch"], k: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return (1 - (1 - beta)^k) / beta, or k if beta is 0.

    It is the chance that one of k draws is accepted, relative to that of a single draw.
    """
    minus = -beta.clamp(min=torch.finfo(beta.dtype).tiny, max=1)
    return torch.expm1(k * torch.log1p(minus)) / minus
