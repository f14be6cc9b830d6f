"""Greedy acceptance: keep the longest path on which every token is the target's argmax.

The next token is the argmax too, so the text is the target's greedy text at every temperature. The rule keeps the
target's distribution only at temperature 0 (on any tree), so it is labelled lossy. Tokens that share the highest
probability all count as the argmax.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import at
from verifiers.acceptance.requirements import require_probabilities


class Greedy:
    """The greedy rule. It uses no random numbers."""

    name = "greedy"
    lossless = False

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_probabilities(tree, target_probs, needs_q=False)
        rows, parents = torch.arange(tree.batch, device=tree.tokens.device)[:, None], tree.parents.clamp(min=0)
        p_x = target_probs[rows, parents, tree.tokens.clamp(min=0)]
        node = tree.deepest(p_x == target_probs.amax(-1).gather(1, parents))
        return Verdict(tree.path_to(node), at(target_probs, node).argmax(-1))
