"""For which trees a rule is exact, and what its input must be like: refused early, with what would work.

| children of a node            | rules that keep the target's distribution        |
| chosen deterministically      | exact, without_replacement, spectr, traversal    |
| drawn with replacement        | exact, spectr, traversal                         |
| drawn without replacement     | without_replacement, traversal                   |
| a chain: one child, or none   | block too                                        |

Shapes are compared on any device. Values are looked at on a CPU, where an error names row and node; on a
GPU they are asserted on the device, which nothing waits for.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.checks import holds, require_finite
from specdec.errors import InputError
from specdec.tree import TokenTree

DETERMINISTIC = "chosen deterministically"
WITH_REPLACEMENT = "drawn with replacement"
WITHOUT_REPLACEMENT = "drawn without replacement"
EXACT_FOR = {
    DETERMINISTIC: ("exact", "without_replacement", "spectr", "traversal"),
    WITH_REPLACEMENT: ("exact", "spectr", "traversal"),
    WITHOUT_REPLACEMENT: ("without_replacement", "traversal"),
}
TOTAL_TOLERANCE = 1e-3  # softmax over 150,000 tokens in fp32 sums to 1 within 1e-5; logits and half a q do not


def require_children(rule: str, tree: TokenTree) -> None:
    """Refuse siblings that were drawn in a way for which the rule is not exact.

    Raises:
        InputError: and names the rules that are.
    """
    drawn = _how_drawn(tree)
    if rule not in EXACT_FOR[drawn]:
        good_for = [how for how, rules in EXACT_FOR.items() if rule in rules]
        raise InputError(
            f"acceptance={rule}",
            expected=f"siblings {' or '.join(good_for)}",
            got=f"siblings {drawn}",
            fix=f"use {_rules_for(drawn)}",
        )


def require_chain(rule: str, tree: TokenTree) -> None:
    """Refuse a node whose parent is not the node right before it.

    Raises:
        InputError: and names the rules that take such a tree.
    """
    drawn = _how_drawn(tree)
    branches = tree.valid & (tree.parents != torch.arange(tree.nodes, device=tree.tokens.device) - 1)
    if holds(~branches, f"acceptance={rule}: the tree is not a chain"):
        return
    row, node = branches.nonzero()[0].tolist()
    raise InputError(
        f"acceptance={rule}",
        expected="a chain, every node the only child of the one before it",
        got=f"node {node} of row {row} with parent {int(tree.parents[row, node])}",
        fix=f"use {_rules_for(drawn)}, or a drafter of width 1",
    )


def require_probabilities(
    tree: TokenTree, target_probs: Float[Tensor, "batch target_nodes target_vocab"], needs_q: bool = True
) -> None:
    """Check that p is finite (it comes out of a softmax, where one bad logit spoils its whole row, so that one
    entry a row tells) and, where the rule needs q, that q is a distribution wherever children were
    drawn, over the same vocabulary.

    Raises:
        InputError: and names row and node.
    """
    if target_probs.shape[:2] != tree.tokens.shape:
        expected, got = f"p at every node, {tuple(tree.tokens.shape)}", tuple(target_probs.shape[:2])
        raise InputError("target_probs", expected=expected, got=got, fix="score the tree that is verified")
    require_finite(target_probs[..., 0].isfinite() | ~tree.valid)
    if needs_q and tree.probs is not None:
        _require_distribution(tree, tree.probs, target_probs.shape[-1])


def _require_distribution(tree: TokenTree, q: Float[Tensor, "batch nodes vocab"], vocab: int) -> None:
    fix = "return from propose() the distribution that the children were drawn from"
    if q.shape[-1] != vocab:
        expected = f"q over the target's vocabulary of {vocab} tokens"
        raise InputError(
            "tree.probs", expected=expected, got=q.shape[-1], fix="map the drafter's tokens to the target's"
        )
    if q.device.type == "cpu":
        q = q[:, : max(int(tree.parents.max()), 0) + 1]  # leaves say nothing; in most trees they come last
    parent = torch.where(tree.parents >= 0, tree.parents, tree.nodes)  # the root's and padding's: behind the end
    inner = torch.zeros(tree.batch, tree.nodes + 1, dtype=torch.bool, device=q.device).scatter_(1, parent, True)
    inner = inner[:, : q.shape[1]]
    total = q.sum(-1)
    proper = ((total - 1).abs() <= TOTAL_TOLERANCE) | ~inner
    if not holds(proper, "tree.probs: not a distribution"):
        row, node = (~proper).nonzero()[0].tolist()
        got = f"sum {float(total[row, node]):.4g} at row {row}, node {node}"
        raise InputError("tree.probs", expected="q with sum 1 at every node with children", got=got, fix=fix)
    rows = torch.arange(tree.batch, device=q.device)[:, None]
    q_x = q[rows, tree.parents.clamp(min=0), tree.tokens.clamp(min=0)]
    drawable = ((q_x > 0) & (q_x <= 1 + TOTAL_TOLERANCE)) | (tree.parents < 0)
    if not holds(drawable, "tree.probs: gives a drafted token no probability"):
        row, node = (~drawable).nonzero()[0].tolist()
        got = f"q = {float(q_x[row, node]):.4g} for the token of node {node} of row {row}"
        raise InputError("tree.probs", expected="0 < q <= 1 for every drafted token", got=got, fix=fix)


def _how_drawn(tree: TokenTree) -> str:
    if tree.probs is not None:
        return WITH_REPLACEMENT if tree.replacement else WITHOUT_REPLACEMENT
    if tree.replacement:
        return DETERMINISTIC
    raise InputError(
        "tree.probs",
        expected="q, from which siblings were drawn without replacement",
        got=None,
        fix="return q from propose(), or chosen children with replacement=True",
    )


def _rules_for(drawn: str) -> str:
    return " or ".join(f"acceptance={rule}" for rule in EXACT_FOR[drawn])
