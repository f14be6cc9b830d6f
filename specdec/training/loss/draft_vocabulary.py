"""Draft vocabularies: a drafter that knows only the most frequent tokens has an output layer several times smaller."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from specdec.errors import InputError
from specdec.training.loss.vocabulary_loss import IGNORED


def frequent_tokens(frequencies: Int[Tensor, " vocab"], rows: int) -> Int[Tensor, " rows"]:
    """The ids of the `rows` most frequent tokens, ascending; of equally frequent ones the lower id.

    Raises:
        InputError: fewer than 1 or more than there are.
    """
    if not 0 < rows <= len(frequencies):
        raise InputError(
            "recipe.vocabulary", expected=f"1 to {len(frequencies)}, or null for all", got=rows, fix="choose another"
        )
    return frequencies.argsort(descending=True, stable=True)[:rows].sort().values


def rows_of(
    vocabulary: Int[Tensor, " rows"] | None, vocab: int, tokens: Int[Tensor, "*shape"]
) -> Int[Tensor, "*shape"]:
    """The output rows of tokens; -1 for token -1 and for those a draft vocabulary does not hold."""
    if vocabulary is None:
        return tokens
    rows = torch.full((vocab + 1,), IGNORED, device=tokens.device)  # the last is token -1
    rows[vocabulary] = torch.arange(len(vocabulary), device=tokens.device)
    return rows[tokens]
