"""Tables of p and q for the proofs: the kinds of cases on which rules have failed before."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.exactness.enumeration import Tables

KINDS = ("random", "peaked", "sparse_p", "sparse_q", "sparse", "equal", "disjoint", "mirrored")


def tables(kind: str, vocab: int, depth: int, seed: int) -> tuple[Tables, Tables]:
    """Return p for depth + 1 tokens and q for depth tokens.

    Args:
        kind: one of `KINDS`.
        vocab: number of tokens.
        depth: depth of the tree.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def rows(d: int, power: float) -> Tensor:
        return normalised(torch.rand(vocab**d, vocab, generator=generator, dtype=torch.float64) ** power + 1e-3)

    power = 8.0 if kind == "peaked" else 1.0
    p = [rows(d, power) for d in range(depth + 1)]
    q = [rows(d, power) for d in range(depth)]
    if kind in ("sparse_p", "sparse"):
        p = [normalised(sparse(level, generator)) for level in p]
    if kind in ("sparse_q", "sparse"):
        q = [normalised(sparse(level, generator)) for level in q]
    if kind == "equal":
        q = p[:-1]
    if kind == "disjoint":  # q is positive on the first half of the tokens, p on the others
        few = max(1, vocab // 2)
        q = [normalised(level * (torch.arange(vocab) < few)) for level in q]
        p = [normalised(level * (torch.arange(vocab) >= few)) for level in p]
    if kind == "mirrored":  # the same at every prefix; with two tokens (1/3, 2/3) and (2/3, 1/3)
        rising = normalised(torch.arange(1, vocab + 1, dtype=torch.float64)[None])
        p, q = (
            [rising.expand_as(level).clone() for level in p],
            [rising.flip(1).expand_as(level).clone() for level in q],
        )
    return Tables(p), Tables(q)


def sparse(level: Tensor, generator: torch.Generator) -> Tensor:
    """Set about half of the entries of each row to 0, but never the largest."""
    keep = torch.rand(level.shape, generator=generator, dtype=torch.float64) < 0.5
    keep.scatter_(1, level.argmax(-1, keepdim=True), True)
    return level * keep


def normalised(level: Tensor) -> Tensor:
    """Divide each row by its sum."""
    return level / level.sum(-1, keepdim=True)
