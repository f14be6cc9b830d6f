"""Time the acceptance of a tree of 64 nodes over 49,152 tokens, in milliseconds: batch 1, fp32, one core.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/acceptance.py --benchmark-columns=min,median,max --benchmark-sort=name

The goal is a median below 3 ms for every rule. p and q are softmaxes of correlated normal logits; `spread` is the
distance of q from p. Every round uses other random numbers.
"""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from torch import Tensor

from specdec.decoding.protocols import AcceptanceRule
from specdec.decoding.sampling import UniformDraws, draw_without_replacement
from specdec.trees.tree import TokenTree
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.greedy import Greedy
from verifiers.acceptance.spectr import SpecTr
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.typical import Typical
from verifiers.acceptance.without_replacement import WithoutReplacement

NODES, VOCAB = 64, 49_152
WIDTHS = {"chain": [1] * 63, "tree": [3, 4, 4]}  # 63 drafted nodes, and 3 + 12 + 48
ANY = ("chain", "tree")
TYPICAL = Typical(epsilon=0.09, alpha=0.3)
CASES: list[tuple[AcceptanceRule, str, str]] = [
    *((rule, shape, "deterministic") for rule in (Greedy(), TYPICAL, Exact(), Traversal()) for shape in ANY),
    *((rule, shape, "with") for rule in (Exact(), SpecTr(), Traversal()) for shape in ANY),
    *((rule, "tree", "without") for rule in (WithoutReplacement(), Traversal())),
    (BlockVerification(), "chain", "with"),
    (BlockVerification(), "chain", "deterministic"),
]


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize(("rule", "shape", "how"), CASES, ids=lambda v: getattr(v, "name", v))
def test_accept(benchmark, rule: AcceptanceRule, shape: str, how: str, spread: float) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tree, p = drawn(WIDTHS[shape], how, spread, generator)
    uniforms = torch.rand(32, 1, NODES, generator=generator, dtype=torch.float64)
    draws = cycle([UniformDraws(u) for u in uniforms])
    benchmark(lambda: rule.accept(tree, p, next(draws)))


def drawn(widths: list[int], how: str, spread: float, generator: torch.Generator) -> tuple[TokenTree, Tensor]:
    parents, level = [-1], [0]
    for width in widths:
        level = [parents.append(node) or len(parents) - 1 for node in level for _ in range(width)]
    logits = 3 * torch.randn(1, NODES, VOCAB, generator=generator)
    p, q = logits.softmax(-1), (logits + spread * torch.randn(1, NODES, VOCAB, generator=generator)).softmax(-1)
    draws = UniformDraws(torch.rand(1, NODES, generator=generator, dtype=torch.float64))
    tokens = torch.zeros(1, NODES, dtype=torch.long)
    for node in range(NODES):
        children = [i for i, parent in enumerate(parents) if parent == node]
        if children and how == "deterministic":
            tokens[:, children] = q[:, node].topk(len(children)).indices
        elif children and how == "without":
            tokens[:, children] = draw_without_replacement(q[:, node], len(children), draws, children[0])
        elif children:
            tokens[:, children] = torch.stack([draws.categorical(q[:, node], child) for child in children], 1)
    return TokenTree(tokens, torch.tensor([parents]), None if how == "deterministic" else q, how != "without"), p
