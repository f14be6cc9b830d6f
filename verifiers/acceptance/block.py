"""Block verification: judge a chain as a whole (Sun et al., arXiv 2403.10444).

The rule is exact on chains, and on them it accepts at least as many tokens in expectation as any other rule. A
deterministic chain is treated as drawn from one-hot q's.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import HUGE, at, nobody_at, normalised, ratios, untaken, untaken_mass
from verifiers.acceptance.requirements import require_exact_for, require_probabilities


class BlockVerification:
    """Keep a prefix of the drafted tokens x_1 ... x_n. With w_0 = 1, let

        w_i = min(1, w_{i-1} p(x_i) / q(x_i)),
        h_i = R_i / (R_i + 1 - w_i),  R_i = sum_x relu(w_i p(x) - q(x)) after x_i,      h_n = w_n.

    Toss a coin of probability h_i for every i, and keep the longest x_1 ... x_i whose coin shows heads. Draw the next
    token from norm(relu(w_i p - q)), or from p after x_n.

    R_i takes a pass over the vocabulary, and most coins show tails. Because h_i <= w_i, the coin of probability h_i can
    be replaced by two that must both show heads: one of probability w_i, then one of h_i / w_i. R_i is needed only for
    the second. The first coins need no pass: a single draw decides which of them is the next to show heads.
    """

    name = "block"
    lossless = True
    exact_for = ExactFor(CHILDREN, siblings=False)

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        w = weights(ratios(tree, target_probs))
        times = torch.where(
            tree.depth < tree.offered[:, None], 1 / w.clamp(min=1 / HUGE), 0
        )  # multiple of q to subtract from p
        index = torch.arange(tree.nodes, device=w.device)
        node = tree.offered  # the node whose first coin showed heads last
        for i in range(tree.nodes - 1, 0, -1):
            if nobody_at(node, i):
                continue
            here = node == i
            left = untaken_mass(tree, target_probs, i, times[:, i])  # R_i / w_i
            second = (left / (w[:, i] * left + 1 - w[:, i])).nan_to_num(nan=1.0).clamp(max=1)  # 0 / 0: p is q
            heads = torch.where(tree.offered == i, w[:, i], second)[:, None]
            outcomes = torch.where(index == i, heads, (1 - heads) * next_heads(w, i))
            outcome = draws.categorical(torch.where(here[:, None], outcomes, (index == 0).to(w)), i)
            node = torch.where(here, outcome, node)
        left = untaken(tree, target_probs, node, at(times, node))
        return Verdict(tree.path_to(node), draws.categorical(normalised(left, at(target_probs, node)), 0))


def weights(ratio: Float[Tensor, "batch nodes"]) -> Float[Tensor, "batch nodes"]:
    """Return w_i for every node of a chain."""
    w = accumulate(ratio.unbind(1), lambda before, r: (before * r).clamp(max=1))
    return torch.stack(list(w), 1)


def next_heads(w: Float[Tensor, "batch nodes"], i: int) -> Float[Tensor, "batch nodes"]:
    """Return the probability that each node is the nearest one before i whose coin of probability w shows heads.

    The root's coin always shows heads.
    """
    tails = torch.ones_like(w)
    tails[:, : i - 1] = (1 - w[:, 1:i]).flip(1).cumprod(1).flip(1)  # P(all coins between the node and i show tails)
    tails[:, i:] = 0
    return w * tails


Block = BlockVerification  # its name in configs that were saved before
