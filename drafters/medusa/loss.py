"""The loss of the heads: at every possible root, they learn the tokens that came after it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drafters.medusa.heads import MedusaHeads, output_weight
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import rows_of
from specdec.training.loss.vocabulary_loss import IGNORED, chunked_sum, rows_at_once
from specdec.training.recipe import Loss, Sum, TrainBatch

TOP = (1, 5)


def medusa_loss(
    module: MedusaHeads,
    target: TargetModel,
    batch: TrainBatch,
    hidden: Float[Tensor, "batch seq dim"],
    decay: float,
    soft: float,
    chunk: int | None = None,
) -> Loss:
    """Return the sum over heads k = 1, 2, ... of decay^k x cross-entropy (arXiv 2401.10774, equation 1).

    It is summed over roots. At position t the root is token t + 1, and head i (from 0) learns token t + 2 + i. The
    root, that token and all tokens between them must belong to one answer, as they do when the heads are used. A token
    outside a draft vocabulary is not learnt, and counts as a miss.

    Args:
        module: the heads.
        target: the frozen model, or the one trained with the heads.
        batch: the texts.
        hidden: the target's last hidden states.
        decay: factor between the weights of neighbouring heads.
        soft: share of the label that is the target's distribution instead of the token that came. It is computed from
            the hidden states, and restricted to the draft vocabulary if there is one.
        chunk: logits held at once; None chooses by device.
    """
    heads = module.heads
    at, roots, tokens = _positions(batch, heads)
    labels = rows_of(module.vocabulary, target.vocab_size, tokens)
    states, entering = hidden.flatten(0, 1), module.entering(hidden, batch.tokens).flatten(0, 1)
    weights = module.output_rows(target)
    weights = weights[:1] if module.output is None else weights
    path = torch.cat([roots[:, None], tokens[:, :-1].clamp(min=0)], 1)  # tokens after an answer's end have no label
    x = module.guesses(entering[at], path, target).transpose(0, 1).to(weights[0].dtype)
    bias = module.output_bias(target)
    shared = [*weights, *([] if bias is None else [bias])]
    theirs = output_weight(target) if module.vocabulary is None else output_weight(target)[module.vocabulary]
    frozen = [states.detach().to(theirs.dtype), theirs] if soft else []

    def of_chunk(x: Tensor, labels: Tensor, at: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        layers, rest = parts[: len(weights)], parts[len(weights) :]
        layer_bias = None if bias is None else rest[0]
        wanted = _SoftLabels(at, heads, *rest[-2:]) if soft else None
        loss, figures = x.new_zeros((), dtype=torch.float32), []
        for head in range(heads):
            learnt = labels[:, head] != IGNORED
            logits = F.linear(x[:, head], layers[head % len(layers)], layer_bias).float()
            part = (1 - soft) * F.cross_entropy(logits, labels[:, head], ignore_index=IGNORED, reduction="sum")
            if wanted is not None:
                part = part - soft * ((wanted(head) * logits.log_softmax(-1)).sum(-1) * learnt).sum()
            loss = loss + decay ** (head + 1) * part
            scores = logits.detach()
            rank = (scores > scores.gather(1, labels[:, head].clamp(min=0)[:, None])).sum(-1)
            figures.append(torch.stack([((rank < k) & learnt).sum() for k in TOP]))
        return loss, torch.stack(figures).float()

    rows = rows_at_once(heads * len(weights[0]), x.device, chunk)
    loss, hits = chunked_sum(of_chunk, [x, labels, at], [*shared, *frozen], rows)
    counts = (tokens != IGNORED).sum(0).float()
    metrics = {
        f"top{k}/head{head}": Sum(hits[head, j], counts[head]) for j, k in enumerate(TOP) for head in range(heads)
    }
    return Loss(Sum(loss, torch.tensor(float(len(at)), device=loss.device)), metrics)


def _positions(batch: TrainBatch, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions to learn from.

    Returns:
        t [roots], numbered over the flattened batch; the roots, tokens t + 1 [roots]; and the labels, tokens t + 2,
        t + 3, ... [roots heads], -1 outside the root's answer.
    """
    tokens, answer = F.pad(batch.tokens, (0, heads + 1)), F.pad(batch.answer, (0, heads + 1))
    seq = batch.tokens.shape[1]
    inside, wanted = answer[:, 1 : 1 + seq], []
    for head in range(heads):
        inside = inside & answer[:, 2 + head : 2 + head + seq]
        wanted.append(torch.where(inside, tokens[:, 2 + head : 2 + head + seq], IGNORED))
    labels = torch.stack(wanted, -1).flatten(0, 1)
    at = (labels[:, 0] != IGNORED).nonzero()[:, 0]
    return at, tokens[:, 1 : 1 + seq].flatten()[at], labels[at]


class _SoftLabels:
    """The target's distributions of the tokens that the heads guess at positions `at`.

    The heads of neighbouring positions guess the same tokens, so each distribution is computed once.

    Args:
        at: positions in the flattened batch, [roots].
        heads: number of heads.
        states: the target's last hidden states, [positions dim].
        weight: its output layer, or the rows of a draft vocabulary, [rows dim].
    """

    def __init__(self, at: Tensor, heads: int, states: Tensor, weight: Tensor) -> None:
        reads = (at[:, None] + 1 + torch.arange(heads, device=at.device)).clamp(max=len(states) - 1)
        places, self._which = reads.unique(return_inverse=True)
        self._probs = F.linear(states[places], weight).float().softmax(-1)

    def __call__(self, head: int) -> Tensor:
        return self._probs[self._which[:, head]]
