"""Token-by-token speculative sampling on trees: the text is distributed exactly as the target's own.

Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318) on a chain; on trees, children
drawn from one q with replacement (SpecInfer, arXiv 2305.09781), and deterministic children, each of which
is a draw from a one-hot q. At temperature 0 p is one-hot, and the rule keeps the path of the argmax.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import top_down
from verifiers.acceptance.requirements import require_exact_for, require_probabilities


class Exact:
    """Walk from the root. Offer each child x of the current node in turn:

        accept x with probability min(1, p(x) / q(x)) and stand on x with the target's p there,
        else p <- norm(relu(p - q)).

    Where no child is left, the next token is drawn from what p has become: recovered after a rejection,
    bonus at a leaf. q stays as it is, since siblings are drawn independently of each other.
    """

    name = "exact"
    lossless = True
    exact_for = ExactFor(("top_k", "with_replacement"))

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        return top_down(tree, target_probs, draws)
