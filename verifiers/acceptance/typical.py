"""Typical acceptance (Medusa, arXiv 2401.10774): keep what the target finds plausible. LOSSY: the text is
not distributed as the target's, it leans towards the drafter's choice among the plausible tokens.

Takes any tree, and does not look at q. At temperature 0, where p is one-hot, it keeps the argmax's path.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.model.runtime.vocabulary import entropies
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import at
from verifiers.acceptance.requirements import require_probabilities


class Typical:
    """Accept x where

        p(x) > min(epsilon, alpha * exp(-H(p)))          H: entropy in nats

    and keep the longest path of accepted nodes (the first of equally long ones). The next token is drawn
    from the target's p at its end. epsilon: a token this likely is always plausible; alpha: how far below
    exp(-H), the typical probability of a token, a plausible one may lie. The paper advises sqrt(epsilon).
    """

    name = "typical"
    lossless = False

    def __init__(self, epsilon: float, alpha: float) -> None:
        for name, value in (("epsilon", epsilon), ("alpha", alpha)):
            if not 0 < value < 1:
                raise InputError(f"acceptance.{name}", expected="a number in (0, 1)", got=value, fix="try 0.09 and 0.3")
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
        if p_x.device.type != "cpu":
            entropy = entropies(target_probs.flatten(0, 1)).view(tree.batch, tree.nodes)
            return p_x > self._threshold(entropy).gather(1, parents)
        # Between log(vocab) and -log(sum p^2) the entropy settles most tokens without being computed, and of the others
        # only those count whose parent was accepted.
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
