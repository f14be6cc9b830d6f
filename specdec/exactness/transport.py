"""The most tokens that any exact rule can accept: bounds by optimal transport.

One level of k children, each drawn from q (Hu et al., arXiv 2502.18779): the chance that one of them is accepted is at
most

    1 + min over H of (P(H) - Q(H)^k).

P(H) is what p covers and Q(H)^k the chance that all children fall into H: then only tokens of H can be kept. The
minimum is reached on a set of tokens with the smallest p / q, so one sort finds it. For deeper trees the bound is the
transport between all drafts and all texts, solved as a linear program: a rule that knew p everywhere could reach it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_matrix
from torch import Tensor

from specdec.exactness.enumeration import Tables, draft, every_outcome

MOST_PAIRS = 60_000  # drafts times texts; a linear program of this size takes about a second


def siblings_bound(p: Tensor, q: Tensor, k: int, replacement: bool = True) -> float:
    """Return the largest chance that one of k children is accepted.

    Args:
        p: distribution of the target, [vocab].
        q: distribution of the drafter, [vocab].
        k: number of children.
        replacement: whether they are drawn independently of each other; else `without_replacement_bound`.
    """
    if not replacement:
        return without_replacement_bound(p, q, k)
    p, q = p.double(), q.double()
    order = torch.where(q > 0, p / q, torch.inf).sort().indices
    below = torch.cat([p.new_zeros(1), q[order].cumsum(0)]) ** k
    return 1 + float((torch.cat([p.new_zeros(1), p[order].cumsum(0)]) - below).min().clamp(max=0))


def without_replacement_bound(p: Tensor, q: Tensor, k: int) -> float:
    """Return the same for children that are drawn one after the other, never the same token twice.

    The minimum runs over all sets of tokens, so the vocabulary must be small (at most 16).
    """
    vocab = len(p)
    assert vocab <= 16
    best = 0.0
    for number in range(1 << vocab):
        inside = torch.tensor([number >> token & 1 for token in range(vocab)], dtype=torch.bool)
        best = min(best, float(p[inside].sum()) - all_inside(q, inside, k))
    return 1 + best


def all_inside(q: Tensor, inside: Tensor, k: int) -> float:
    """Return the chance that k tokens drawn from q without replacement all lie in a set."""
    if k == 0:
        return 1.0
    total, chance = float(q.sum()), 0.0
    if total <= 0:
        return 1.0  # nothing is left to draw
    for token in inside.nonzero()[:, 0].tolist():
        if q[token] > 0:
            rest = q.clone()
            rest[token] = 0
            chance += float(q[token]) / total * all_inside(rest, inside, k - 1)
    return chance


def tree_bound(parents: Sequence[int], p: Tables, q: Tables, how: str) -> float | None:
    """Return the largest expected number of accepted tokens of a tree, or None if the program would be too large.

    Args:
        parents: parents of the tree's nodes, level by level.
        p: the target's distributions.
        q: the drafter's distributions.
        how: how children are chosen.
    """
    one, levels = torch.ones(1, dtype=torch.float64), len(q.levels)
    texts = Tables(p.levels[:levels]).joint()
    if p.vocab ** (len(parents) - 1) * len(texts) > MOST_PAIRS and how != "top_k":
        return None
    _, weight, (tokens, kept) = every_outcome(
        lambda draws, start: ((tree := draft(parents, q, how, draws, len(start))).tokens, tree.parents),
        1, len(parents), one,
    )  # fmt: skip
    gains = np.stack([_depths(t, k, p.vocab, levels) for t, k in zip(tokens.tolist(), kept.tolist(), strict=True)])
    drafts, size = gains.shape
    pairs = np.arange(drafts * size)
    rows = np.concatenate([pairs // size, drafts + pairs % size])
    matrix = coo_matrix((np.ones(len(rows)), (rows, np.concatenate([pairs, pairs]))))
    right = np.concatenate([weight.numpy(), texts.numpy()])
    found = linprog(
        -gains.ravel(), A_eq=matrix.tocsr()[:-1], b_eq=right[:-1]
    )  # the last equation follows from the others
    assert found.success, found.message
    return -float(found.fun)


def _depths(tokens: list[int], parents: list[int], vocab: int, levels: int) -> np.ndarray:
    """Return, for every text of `levels` tokens, how many of its tokens a tree holds."""
    paths: dict[tuple[int, ...], int] = {(): 0}
    of_node: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        of_node.append((*of_node[parent], token) if parent >= 0 else ())
        paths[of_node[-1]] = len(of_node[-1])
    depths = np.zeros(vocab**levels)
    for path, depth in sorted(paths.items(), key=lambda item: item[1]):
        first = 0
        for token in path:
            first = first * vocab + token
        width = vocab ** (levels - depth)
        depths[first * width : (first + 1) * width] = depth
    return depths
