"""Save a trained drafter in its own format, with the amount of training text; atomically."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.durable import replacing, write_json, write_text
from specdec.model.target import TargetModel
from specdec.runs.log import CARD
from specdec.training.recipe import Recipe

TRAINING = "training.json"


def save_drafter(
    recipe: Recipe, module: nn.Module, target: TargetModel, folder: Path, tokens: int, card: str = ""
) -> None:
    """Write a trained drafter, replacing an earlier one in the same folder.

    Args:
        recipe: writes the module in the drafter's own format.
        module: the trained module.
        target: its target.
        folder: folder of the drafter.
        tokens: as in `Size.training_tokens`.
        card: Markdown of the model card, `README.md`; no card if empty.
    """
    with replacing(folder) as unfinished:
        unfinished.mkdir(parents=True)
        recipe.save(module, target, unfinished)
        write_json(unfinished / TRAINING, {"tokens": tokens})
        if card:
            write_text(unfinished / CARD, card)


def training_tokens(folder: Path) -> int | None:
    """Return the number of training tokens that `save_drafter` wrote; None if there is no such file.

    Raises:
        InputError: the file holds no number of tokens.
    """
    file = folder / TRAINING
    if not file.exists():
        return None
    try:
        tokens = read_json(file)["tokens"]
        if type(tokens) is not int or tokens < 0:
            raise ValueError(f"tokens = {tokens!r}"[:100])
        return tokens
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        fix = "write it, or delete the file"
        raise InputError(str(file), expected='{"tokens": NUMBER}', got=got, fix=fix) from error
