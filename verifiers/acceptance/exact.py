"""Token-by-token speculative sampling on trees: the text is distributed exactly as the target's own.

Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318) on a chain; on trees, children
drawn from one q with replacement (SpecInfer, arXiv 2305.09781), and deterministic children, each of which
is a draw from a one-hot q. At temperature 0 p is one-hot, and the rule keeps the path of the argmax.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.protocols import Verdict
from specdec.sampling import Draws
from specdec.tree import TokenTree


class Exact:
    """Walk from the root. Offer each child x of the current node in turn:

        accept x with probability min(1, p(x) / q(x)) and stand on x with the target's p there,
        else p <- norm(relu(p - q)).

    Where no child is left, the next token is drawn from what p has become: recovered after a rejection,
    bonus at a leaf. Lossless for every tree whose children were drawn as `TokenTree.probs` says.
    """

    name = "exact"
    lossless = True

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        rows = torch.arange(tree.batch, device=tree.tokens.device)
        node = torch.zeros_like(rows)  # where each row stands
        p = target_probs[:, 0]
        for child in range(1, tree.nodes):
            offered = tree.valid[:, child] & (tree.parents[:, child] == node)
            if offered.device.type == "cpu" and not offered.any():
                continue  # looking costs nothing on a CPU; on a GPU it would wait for the device
            x = tree.tokens[:, child].clamp(min=0)
            q = torch.zeros_like(p).scatter_(1, x[:, None], 1.0) if tree.probs is None else tree.probs[rows, node]
            ratio = (p[rows, x] / q[rows, x]).nan_to_num(nan=0.0, posinf=1.0).clamp(max=1.0)
            accepted = offered & draws.bernoulli(ratio, child)
            p = torch.where(offered[:, None], residual(p, q), p)
            p = torch.where(accepted[:, None], target_probs[:, child], p)
            node = torch.where(accepted, child, node)
        return Verdict(tree.path_to(node), draws.categorical(p, 0))


def residual(p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
    """norm(relu(p - q)): what is left of p once everything q could give has been offered.

    Where nothing is left (p equals q up to rounding) p itself is returned: rejection then had
    probability 0 up to rounding.
    """
    rest = (p - q).clamp(min=0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)
