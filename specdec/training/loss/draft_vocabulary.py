"""Draft vocabularies: with only the most frequent tokens, a drafter's output layer is several times smaller."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from specdec.errors import InputError
from specdec.training.loss.vocabulary_loss import IGNORED


def frequent_tokens(frequencies: Int[Tensor, " vocab"], rows: int) -> Int[Tensor, " rows"]:
    """Return the ids of the `rows` most frequent tokens, ascending. Ties go to the lower id.

    Raises:
        InputError: `rows` < 1, or larger than the vocabulary.
    """
    if not 0 < rows <= len(frequencies):
        raise InputError(
            "recipe.vocabulary", expected=f"1 to {len(frequencies)}, or null for all", got=rows, fix="choose another"
        )
    return frequencies.argsort(descending=True, stable=True)[:rows].sort().values


def rows_of(
    vocabulary: Int[Tensor, " rows"] | None, vocab: int, tokens: Int[Tensor, "*shape"]
) -> Int[Tensor, "*shape"]:
    """Return the rows of the output layer that belong to tokens; -1 for token -1 and outside the draft vocabulary.

    Args:
        vocabulary: token ids of the draft vocabulary; None for the full one.
        vocab: size of the full vocabulary.
        tokens: token ids.
    """
    if vocabulary is None:
        return tokens
    rows = torch.full((vocab + 1,), IGNORED, device=tokens.device)  # the last entry is for token -1
    rows[vocabulary] = torch.arange(len(vocabulary), device=tokens.device)
    return rows[tokens]
