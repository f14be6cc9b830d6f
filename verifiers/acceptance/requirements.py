"""Check the input of a rule: whether it is exact for the tree, and whether p and q are distributions.

A rule declares its trees itself (`exact_for`). Shapes are compared on any device. On a CPU values are read, and an
error names row and node. On a GPU values are asserted on the device, so that the host does not wait.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.decoding.checks import holds, require_finite, require_q
from specdec.decoding.protocols import LosslessRule
from specdec.errors import InputError
from specdec.trees.tree import TokenTree

HOW = {
    "top_k": "chosen deterministically",
    "with_replacement": "drawn with replacement",
    "without_replacement": "drawn without replacement",
}
USE = "use acceptance=traversal, which is exact for every tree"


def require_exact_for(rule: LosslessRule, tree: TokenTree) -> None:
    """Refuse a tree for which the rule is not declared exact.

    Raises:
        InputError: children chosen in an undeclared way, siblings if only chains are declared, or no q for children
            that were drawn.
    """
    if tree.nodes == 1:
        return  # only the root: nothing was drafted, and there is nothing to judge
    declared, children = rule.exact_for, _how_chosen(tree)
    if children not in declared.children:
        expected = f"siblings {' or '.join(HOW[how] for how in declared.children)}"
        raise InputError(f"acceptance={rule.name}", expected=expected, got=f"siblings {HOW[children]}", fix=USE)
    if not declared.siblings:
        _require_chain(rule.name, tree)


def _require_chain(rule: str, tree: TokenTree) -> None:
    branches = tree.valid & (tree.parents != torch.arange(tree.nodes, device=tree.tokens.device) - 1)
    if holds(~branches, f"acceptance={rule}: the tree is not a chain"):
        return
    row, node = branches.nonzero()[0].tolist()
    raise InputError(
        f"acceptance={rule}",
        expected="a chain, every node the only child of the one before it",
        got=f"node {node} of row {row} with parent {int(tree.parents[row, node])}",
        fix=f"{USE}, or a drafter of width 1",
    )


def require_probabilities(
    tree: TokenTree, target_probs: Float[Tensor, "batch target_nodes target_vocab"], needs_q: bool = True
) -> None:
    """Check that p is finite and that q is a distribution.

    One entry per row of p is enough, because p comes from a softmax: one bad logit makes its whole row NaN.

    Args:
        tree: the tree to judge.
        target_probs: p after each node.
        needs_q: also check q, over the same vocabulary, at every node whose children were drawn.

    Raises:
        InputError: names row and node.
    """
    if target_probs.shape[:2] != tree.tokens.shape:
        expected, got = f"p at every node, {tuple(tree.tokens.shape)}", tuple(target_probs.shape[:2])
        raise InputError("target_probs", expected=expected, got=got, fix="score the tree that is verified")
    require_finite(target_probs[..., 0].isfinite() | ~tree.valid)
    if needs_q and tree.probs is not None:
        require_q(tree, tree.probs, target_probs.shape[-1])


def _how_chosen(tree: TokenTree) -> str:
    """Return how the tree's children were chosen, one of `CHILDREN`."""
    if tree.probs is not None:
        return "with_replacement" if tree.replacement else "without_replacement"
    if tree.replacement:
        return "top_k"
    raise InputError(
        "tree.probs",
        expected="q, from which siblings were drawn without replacement",
        got=None,
        fix="return q from propose(), or chosen children with replacement=True",
    )
