"""Token-by-token speculative sampling on trees: the text has exactly the target's distribution.

- chains: Leviathan et al. (arXiv 2211.17192), Chen et al. (arXiv 2302.01318)
- trees whose children were drawn from one q with replacement: SpecInfer (arXiv 2305.09781)
- deterministic children: each is treated as a draw from a one-hot q

At temperature 0 p is one-hot, and the rule keeps the path of argmax tokens.
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

    If no child is left, draw the next token from the current p: it is recovered after a rejection, and a bonus at a
    leaf. q does not change, because siblings are drawn independently of each other.
    """

    name = "exact"
    lossless = True
    exact_for = ExactFor(("top_k", "with_replacement"))

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        return top_down(tree, target_probs, draws)
