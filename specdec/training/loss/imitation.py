"""Losses for drafters of the next token: from the token itself, or from the target's distribution of it."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import rows_of
from specdec.training.loss.vocabulary_loss import DIVERGENCES, cross_entropy, divergence
from specdec.training.recipe import Loss, Sum, TrainBatch

LOSSES = ("token", *DIVERGENCES)


def require_kind(loss: str) -> None:
    """Refuse an unknown loss.

    Raises:
        InputError: `loss` is not one of `LOSSES`.
    """
    if loss not in LOSSES:
        raise InputError("recipe.loss", expected=f"one of {', '.join(LOSSES)}", got=repr(loss), fix="choose one")


def next_token_loss(
    states: Float[Tensor, "batch seq dim"],
    hidden: Float[Tensor, "batch seq target_dim"],
    batch: TrainBatch,
    target: TargetModel,
    kind: str,
    vocabulary: Int[Tensor, " rows"] | None = None,
    weight: Float[Tensor, "rows dim"] | None = None,
    chunk: int | None = None,
) -> Loss:
    """Return the loss of predicting token t + 1 from the drafter's state at t, wherever token t + 1 is an answer's.

    Args:
        states: inputs of the drafter's output layer.
        hidden: the target's last hidden states.
        batch: the texts.
        target: the target.
        kind: "token", the cross-entropy of the recorded token (tokens outside the draft vocabulary do not count); or a
            divergence of the drafter's q from the target's p at temperature 1, as in `divergence`.
        vocabulary: token ids of the draft vocabulary; None for the full one.
        weight: the drafter's output layer; None for the target's (frozen), or its rows of the draft vocabulary.
        chunk: logits computed at a time; None for a default that suits the device.

    Returns:
        The loss. For "token" its metrics are `top1` and `top5`, how often the token is among q's first 1 and 5. For
        divergences the metric is `acceptance`, the mean probability that a token drawn from q is accepted: 1 - total
        variation. With a draft vocabulary, p is conditioned on that vocabulary.
    """
    follows = batch.answer[:, 1:]
    here, count = states[:, :-1][follows], follows.sum().float()
    output = target.model.get_output_embeddings()
    theirs = output.weight.detach()
    theirs = theirs if vocabulary is None else theirs[vocabulary]
    weight = theirs.to(here.dtype) if weight is None else weight
    if kind == "token":
        labels = rows_of(vocabulary, target.vocab_size, batch.tokens[:, 1:][follows])
        bias = getattr(output, "bias", None)
        bias = bias.detach().to(here.dtype) if bias is not None else None
        bias = bias[vocabulary] if bias is not None and vocabulary is not None else bias
        total, hits = cross_entropy(here, weight, labels, bias, chunk=chunk)
        return Loss(Sum(total, count), {"top1": Sum(hits[0], count), "top5": Sum(hits[1], count)})
    at = hidden[:, :-1][follows].to(theirs.dtype)
    total, accepted = divergence(here, weight, at, theirs, kind, chunk=chunk)
    return Loss(Sum(total, count), {"acceptance": Sum(accepted, count)})
