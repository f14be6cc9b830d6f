"""Hierarchical speculative decoding on chains (arXiv 2601.05724), with every acceptance capped.

With the cap it is exact, and accepts with the same probabilities as `block`. The released code leaves the cap out of
the last acceptance; `capped=False` does so too. It is then LOSSY: with p = (1/3, 2/3) and q = (2/3, 1/3) everywhere and
two drafted tokens, the text (1, 0) comes with probability 1/3 instead of 2/9.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import ExactFor, Verdict
from specdec.decoding.sampling import Draws
from specdec.trees.tree import TokenTree
from verifiers.acceptance.block import weights
from verifiers.acceptance.rejection import HUGE, at, normalised, ratios, untaken, untaken_mass
from verifiers.acceptance.requirements import require_exact_for, require_probabilities


class Hsd:
    """Walk from the end of the drafted tokens x_1 ... x_n back to the root. With the joint ratio of a prefix

        J_k = product over i <= k of p(x_i) / q(x_i),       w_k = J_k / max(J_0, ..., J_k),

    keep all n tokens with probability w_n (uncapped: J_n), else the first k < n, from n - 1 down, with probability

        plus_k / max(plus_k, minus_k),   plus_k = sum_x relu(w_k p(x) - q(x)),   minus_k = sum_x relu(q(x) - w_k p(x)).

    Draw the next token from norm(relu(w_k p - q)), or from p after x_n. Because minus_k = plus_k + 1 - w_k, these are
    the coins of `block`.

    Args:
        capped: whether the last acceptance is capped like the others.
    """

    exact_for = ExactFor(CHILDREN, siblings=False)

    def __init__(self, capped: bool = True) -> None:
        self.capped, self.lossless = capped, capped
        self.name = "hsd" if capped else "hsd_released"

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_exact_for(self, tree)
        require_probabilities(tree, target_probs)
        ratio = ratios(tree, target_probs)
        w, last = weights(ratio), tree.offered
        whole = w if self.capped else ratio.cumprod(1).clamp(max=1)
        times = torch.where(tree.depth < last[:, None], 1 / w.clamp(min=1 / HUGE), 0)  # multiple of q to subtract
        node = torch.zeros_like(last)
        for i in range(tree.nodes - 1, 0, -1):
            plus = w[:, i] * untaken_mass(tree, target_probs, i, times[:, i])
            stay = (plus / (plus + 1 - w[:, i])).nan_to_num(nan=1.0).clamp(max=1)  # 0 / 0: p is q
            rate = torch.where(last == i, whole[:, i], torch.where(last > i, stay, 0))
            kept = draws.bernoulli(torch.where(node == 0, rate.nan_to_num(), 0), i)
            node = torch.where(kept, i, node)
        left = untaken(tree, target_probs, node, at(times, node))
        return Verdict(tree.path_to(node), draws.categorical(normalised(left, at(target_probs, node)), 0))
