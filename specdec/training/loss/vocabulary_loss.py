"""Losses over the vocabulary that never hold all logits [rows vocab] in memory.

The logits, hidden @ weight.T, are computed for a chunk of rows at a time, together with their gradients. This is
possible because a row's share of the loss needs no other row. The backward pass only multiplies the gradients that the
forward pass has summed; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

# logits per chunk, by device: 64 MiB in fp32 on CPU, 512 MiB on CUDA, where small kernels would leave the GPU idle.
# The peak memory is a few times that.
CHUNKS = {"cpu": 1 << 24, "cuda": 1 << 27}
IGNORED = -1
DIVERGENCES = ("cross_entropy", "forward_kl", "reverse_kl", "total_variation")


def cross_entropy(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    labels: Int[Tensor, " rows"],
    bias: Float[Tensor, " vocab"] | None = None,
    top: Sequence[int] = (1, 5),
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " top"]]:
    """Return the cross-entropy of softmax(hidden @ weight.T + bias), and the hits among its most probable tokens.

    Args:
        hidden: inputs of the output layer.
        weight, bias: the output layer; no bias if None.
        labels: row of the output layer of each right token; rows labelled -1 do not count (their token is not in the
            draft vocabulary).
        top: numbers of most probable tokens in which to look for the label.
        chunk: logits computed at a time; None for a default that suits the device.

    Returns:
        The cross-entropy summed over rows, in nats; and for each i the number of labels among the top[i] most probable
        tokens.
    """

    def of_chunk(hidden: Tensor, labels: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = _wide(F.linear(hidden, weight, *bias))
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        own = logits.detach().gather(1, labels.clamp(min=0)[:, None])
        rank = (logits.detach() > own).sum(-1)
        return loss, torch.stack([((rank < k) & (labels != IGNORED)).sum() for k in top]).to(loss)

    shared = [weight] if bias is None else [weight, bias]
    return chunked_sum(of_chunk, [hidden, labels], shared, rows_at_once(len(weight), hidden.device, chunk))


def divergence(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    target_hidden: Float[Tensor, "rows target_dim"],
    target_weight: Float[Tensor, "vocab target_dim"],
    kind: str = "forward_kl",
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the divergence of q from the target's p (arXiv 2310.08461), and the acceptance.

    q = softmax(hidden @ weight.T / temperature); p is computed in the same way from `target_hidden` and
    `target_weight`, without gradient. With a draft vocabulary, pass the target's rows of that vocabulary: p is then
    conditioned on it.

        forward_kl        sum p log p/q
        reverse_kl        sum q log q/p
        cross_entropy     -sum p log q
        total_variation   sum |p - q| / 2

    Args:
        hidden, weight: inputs and matrix of the drafter's output layer.
        target_hidden, target_weight: the same of the target.
        kind: one of the above.
        temperature: temperature of both distributions.
        chunk: logits computed at a time; None for a default that suits the device.

    Returns:
        The divergence summed over rows, in nats; and the sum of 1 - total variation, the probability that a token drawn
        from q is accepted (arXiv 2211.17192).
    """
    assert kind in DIVERGENCES, kind

    def of_chunk(hidden: Tensor, theirs: Tensor, weight: Tensor, target_weight: Tensor) -> tuple[Tensor, Tensor]:
        log_q = (_wide(F.linear(hidden, weight)) / temperature).log_softmax(-1)
        log_p = (_wide(F.linear(theirs, target_weight)) / temperature).log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        variation = (p - q).abs().sum() / 2
        if kind == "total_variation":
            loss = variation
        elif kind == "cross_entropy":
            loss = -(p * log_q).sum()
        elif kind == "forward_kl":
            loss = (p * (log_p - log_q)).sum()
        else:
            loss = (q * (log_q - log_p)).sum()
        return loss, len(hidden) - variation.detach()

    frozen = [target_hidden.detach(), target_weight.detach()]
    rows = rows_at_once(len(weight), hidden.device, chunk)
    return chunked_sum(of_chunk, [hidden, frozen[0]], [weight, frozen[1]], rows)


def rows_at_once(logits: int, device: torch.device, chunk: int | None = None) -> int:
    """Return the number of rows in a chunk.

    Args:
        logits: logits per row.
        device: device of the rows.
        chunk: logits per chunk; None for a default that suits the device.
    """
    return max((chunk or CHUNKS.get(device.type, CHUNKS["cpu"])) // logits, 1)


def chunked_sum(
    function: Callable[..., tuple[Tensor, Tensor]], rows: Sequence[Tensor], shared: Sequence[Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """Return `function(*rows, *shared)`, computed in chunks of rows.

    Args:
        function: returns a loss and figures without gradient, both sums over rows.
        rows: tensors with one entry per row; `chunk` rows of them are passed at a time.
        shared: tensors that are passed whole.
        chunk: rows per call.

    Returns:
        The sums of both results. Gradients reach those of `rows` and `shared` that require them.
    """
    if torch.is_grad_enabled():
        return _ChunkedSum.apply(function, chunk, len(rows), *rows, *shared)
    return _ChunkedSum.apply(function, chunk, len(rows), *(tensor.detach() for tensor in (*rows, *shared)))


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, Tensor]], chunk: int, n: int, *tensors: Tensor) -> Any:
        needs = [ctx.needs_input_grad[3 + i] for i in range(len(tensors))]
        grads = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
        total: Any = 0.0
        figures: Any = 0.0
        for start in range(0, max(len(tensors[0]), 1), chunk):  # without rows once, so that the results have shapes
            here = slice(start, start + chunk)
            parts = [
                (t[here] if i < n else t).detach().requires_grad_(need)
                for i, (t, need) in enumerate(zip(tensors, needs, strict=True))
            ]
            with torch.set_grad_enabled(any(needs)):
                loss, figure = function(*parts)
            total, figures = total + loss.detach(), figures + figure.detach()
            wanted = [i for i, need in enumerate(needs) if need]
            if wanted:
                for i, grad in zip(wanted, torch.autograd.grad(loss, [parts[i] for i in wanted]), strict=True):
                    (grads[i][here] if i < n else grads[i]).add_(grad)  # type: ignore[index,union-attr]
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(figures)
        return total, figures

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        return None, None, None, *(None if grad is None else grad * upstream for grad in ctx.saved_tensors)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
