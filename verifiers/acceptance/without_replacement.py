"""Recursive rejection sampling for siblings drawn without replacement (Sequoia, arXiv 2402.12374).

The rule is exact for trees whose siblings were drawn one after the other from q, never the same token twice, in the
order of their index (`specdec.decoding.sampling.draw_without_replacement`). It is also exact for deterministic
children. No try is spent on a token that was rejected before, so it accepts at least as often as independent draws if q
is far from p.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import top_down
from verifiers.acceptance.requirements import require_exact_for, require_probabilities


class WithoutReplacement:
    """Walk from the root. Offer each child x of the current node in turn:

    accept x with probability min(1, p(x) / q(x)) and stand on x with the target's p there,
    else p <- norm(relu(p - q)), and then q(x) <- 0, q <- norm(q).

    The last is the distribution that the next sibling was drawn from.
    """

    name = "without_replacement"
    lossless = True
    exact_for = ExactFor(("top_k", "without_replacement"))

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        return top_down(tree, target_probs, draws, replacement=False)
