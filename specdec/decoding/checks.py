"""Conditions on tensors: checked at once on a CPU, asserted on any other device, so that the host need not wait."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specdec.errors import InputError
from specdec.trees import transfer
from specdec.trees.tree import TokenTree

TOTAL_TOLERANCE = 1e-3  # softmax over 150,000 tokens in fp32 sums to 1 within 1e-5; logits and half a q do not


def holds(ok: Bool[Tensor, "*shape"], message: str) -> bool:
    """Whether all conditions hold. On a device, return True without waiting and let the device assert it."""
    if transfer.on_host(ok):
        return bool(ok.all())
    torch._assert_async(ok.all(), message)
    return True


def require_finite(ok: Bool[Tensor, "batch nodes"]) -> None:
    """Refuse NaN and infinity in a target's output.

    Raises:
        InputError: names row and node.
    """
    if not holds(ok, "target_probs: not finite"):
        where = "at row {}, node {}".format(*(~ok).nonzero()[0].tolist())
        fix = "look for an overflow in the target (try target.dtype=float32)"
        raise InputError("target_probs", expected="finite probabilities", got=f"NaN or infinity {where}", fix=fix)


def require_q(tree: TokenTree, q: Float[Tensor, "batch nodes vocab"], vocab: int) -> None:
    """Check q at every node with children: it must be a distribution over the target's `vocab` tokens, and give every
    child a positive probability.

    Raises:
        InputError: names row and node.
    """
    fix = "return from propose() the distribution that the children were drawn from"
    if q.shape[-1] != vocab:
        expected = f"q over the target's vocabulary of {vocab} tokens"
        raise InputError(
            "tree.probs", expected=expected, got=q.shape[-1], fix="map the drafter's tokens to the target's"
        )
    if transfer.on_host(q):
        q = q[:, : max(int(tree.parents.max()), 0) + 1]  # leaves have no q; in most trees they come last
    parent = torch.where(tree.parents >= 0, tree.parents, tree.nodes)  # for root and padding: behind the end
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
