"""The trained drafter, in its own format: whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from specdec.target import TargetModel
from specdec.training.recipe import Recipe


def save_drafter(recipe: Recipe, module: nn.Module, target: TargetModel, folder: Path) -> None:
    """Written beside its place, then renamed; an earlier one goes."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    recipe.save(module, target, unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
