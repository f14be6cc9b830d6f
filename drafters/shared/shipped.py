"""Find the trained weights that come with the repository, in `drafters/weights/<target>/<drafter>/`."""

from __future__ import annotations

from pathlib import Path

from specdec.errors import InputError
from specdec.model.target import TargetModel

WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped_folder(target: TargetModel, drafter: str, what: str) -> Path:
    """Return the folder of the weights that are shipped for this drafter and target.

    Args:
        target: the model to draft for.
        drafter: name of the drafter's folder.
        what: name used in error messages.

    Raises:
        InputError: no weights are shipped for this pair.
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
