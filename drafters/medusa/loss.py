"""What heads learn from: at every position a tree could grow from, the tokens that came after its root."""

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
    """sum over heads k of decay^k x cross-entropy, k counted from 1, over roots (arXiv 2401.10774, equation 1).

    At position t the root is token t + 1, and head i learns token t + 2 + i; both, and all tokens between them, must
    be of one answer, as they are when the heads are used. hidden: the target's last hidden states. soft: the share of
    the label that is not the token that came, but the target's own distribution there, made from its hidden state
    (with a draft vocabulary: given that vocabulary). A token outside a draft vocabulary teaches nothing, and counts
    as a miss.
    """
    heads = module.heads
    at, roots, tokens = _positions(batch, heads)
    labels = rows_of(module.vocabulary, target.vocab_size, tokens)
    states, entering = hidden.flatten(0, 1), module.entering(hidden, batch.tokens).flatten(0, 1)
    weights = module.output_rows(target)
    weights = weights[:1] if module.output is None else weights
    path = torch.cat([roots[:, None], tokens[:, :-1].clamp(min=0)], 1)  # after an answer's end nothing is learnt
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
    """Positions t [roots], numbered over the flattened batch, the tokens t + 1 [roots], and the tokens t + 2, t + 3,
    ... [roots heads] that the heads are to guess there, -1 where that is nothing of the root's answer."""
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
    """The target's distribution of the token that each head is to guess at positions `at`, each made once: heads look
    at neighbouring positions."""

    def __init__(self, at: Tensor, heads: int, states: Tensor, weight: Tensor) -> None:
        reads = (at[:, None] + 1 + torch.arange(heads, device=at.device)).clamp(max=len(states) - 1)
        places, self._which = reads.unique(return_inverse=True)
        self._probs = F.linear(states[places], weight).float().softmax(-1)

    def __call__(self, head: int) -> Tensor:
        return self._probs[self._which[:, head]]
