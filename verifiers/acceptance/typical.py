"""Typical acceptance: keep tokens that are plausible under p (Medusa, arXiv 2401.10774).

The rule is LOSSY: the text does not have the target's distribution, but leans towards the drafter's choices among the
plausible tokens. It accepts any tree and does not use q. At temperature 0 p is one-hot, and the rule keeps the path of
argmax tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.model.runtime.vocabulary import entropies
from specdec.trees import transfer
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import at
from verifiers.acceptance.requirements import require_probabilities


class Typical:
    """Accept x if

        p(x) > min(epsilon, alpha * exp(-H(p)))          H: entropy in nats

    Keep the longest path of accepted nodes, the first of equally long ones. Draw the next token from p at its end.

    Args:
        epsilon: a token with a larger probability is always plausible.
        alpha: a plausible token may be this much less probable than exp(-H), the typical probability of a token. The
            paper recommends sqrt(epsilon).

    Raises:
        InputError: a number outside (0, 1).
    """

    name = "typical"
    lossless = False

    def __init__(self, epsilon: float, alpha: float) -> None:
        for name, value in (("epsilon", epsilon), ("alpha", alpha)):
            if not 0 < value < 1:
                raise InputError(
                    f"acceptance.{name}", expected="a number in (0, 1)", got=repr(value), fix="try 0.09 and 0.3"
                )
        self.epsilon, self.alpha = epsilon, alpha

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_probabilities(tree, target_probs, needs_q=False)
        node = tree.deepest(self._plausible(tree, target_probs))
        return Verdict(tree.path_to(node), draws.categorical(at(target_probs, node), 0))

    def _plausible(
        self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"]
    ) -> Bool[Tensor, "batch nodes"]:
        rows, parents = torch.arange(tree.batch, device=tree.tokens.device)[:, None], tree.parents.clamp(min=0)
        p_x = target_probs[rows, parents, tree.tokens.clamp(min=0)]
        if not transfer.on_host(p_x):
            entropy = entropies(target_probs.flatten(0, 1)).view(tree.batch, tree.nodes)
            return p_x > self._threshold(entropy).gather(1, parents)
        # -log(sum p^2) <= H <= log(vocab) settles most tokens without the entropy. It is computed only for the others,
        # and only if their parent was accepted.
        plausible = (p_x > self.epsilon).tolist()
        unclear = tree.valid & (p_x <= self.epsilon) & (p_x > self.alpha / target_probs.shape[-1])
        thresholds: dict[tuple[int, int], float] = {}
        for row, node in unclear.nonzero().tolist():
            parent = int(parents[row, node])
            if parent == 0 or plausible[row][parent]:
                p, x, key = target_probs[row, parent], float(p_x[row, node]), (row, parent)
                if key not in thresholds and x <= self.alpha * float(p @ p):
                    thresholds[key] = float(self._threshold(entropies(p[None])))
                plausible[row][node] = x > thresholds.get(key, 0.0)
        return torch.tensor(plausible)

    def _threshold(self, entropy: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        return (self.alpha * torch.exp(-entropy)).clamp(max=self.epsilon)
