"""Measure how often each candidate of each head is right, on text that the target wrote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drafters.medusa.drafter import MedusaProducts
from drafters.medusa.heads import MedusaHeads
from specdec.model.target import TargetModel
from specdec.trees.topology import Topology

CHUNK = 32  # positions whose logits are held at once


class Accuracy:
    """Find the rank that each head gives to the token that came.

    Args:
        heads: the heads.
        target: the model that they are for.
        candidates: number of each head's best tokens to look at.
    """

    def __init__(self, heads: MedusaHeads, target: TargetModel, candidates: int) -> None:
        chain = Topology.of([[0] * depth for depth in range(1, heads.heads + 1)])
        self._heads, self._products, self._candidates = heads, MedusaProducts(heads, target, chain), candidates

    @torch.inference_mode()
    def ranks(
        self, tokens: Int[Tensor, " seq"], hidden: Float[Tensor, "seq dim"], answers: Sequence[Sequence[int]]
    ) -> Int[Tensor, "positions heads"]:
        """Return each head's rank of its token at every possible root, -1 if it is not among the candidates.

        A root is used only if it and the tokens of all heads belong to one answer.

        Args:
            tokens: one text.
            hidden: the target's last hidden states of the text.
            answers: [begin, end) of the parts that the target wrote.
        """
        k, found = self._heads.heads, []
        for begin, end in answers:
            for first in range(begin - 1, end - 1 - k, CHUNK):
                at = torch.arange(first, min(first + CHUNK, end - 1 - k))
                came = tokens[at[:, None] + 2 + torch.arange(k)].to(hidden.device)
                best = self._heads.ids(self._products(hidden[at]).topk(self._candidates).indices)
                right = best == came[..., None]
                found.append(torch.where(right.any(-1), right.int().argmax(-1), -1).cpu())
        return torch.cat(found) if found else torch.empty(0, k, dtype=torch.long)


def accuracies(ranks: Int[Tensor, "positions heads"], candidates: int) -> Float[Tensor, "heads candidates"]:
    """Return the share of positions at which each head's candidate of each rank is the right token."""
    return (ranks[..., None] == torch.arange(candidates)).double().mean(0)
