"""Trained weights that come with the repository: `weights/<target>/<drafter>/`, packaged with this folder."""

from __future__ import annotations

from pathlib import Path

from specdec.errors import InputError
from specdec.model.target import TargetModel

WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped_folder(target: TargetModel, drafter: str, what: str) -> Path:
    """Where the drafter's weights for this target lie; `what`: the option that asked for them.

    Raises:
        InputError: none are shipped for it.
    """
    folders = {folder.parent.name: folder for folder in WEIGHTS.glob(f"*/{drafter}")}
    if target.name in folders:
        return folders[target.name]
    raise InputError(
        f"{what}=auto",
        expected=f"a target that {drafter} weights are shipped for ({', '.join(sorted(folders)) or 'none so far'})",
        got=target.name,
        fix=f"train some with `python -m experiments.train drafter={drafter} target=...` and pass {what}=FOLDER",
    )
