"""Trained parts of a drafter on disk: what was trained, and whose drafter it is; nothing that the target has."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specdec.errors import InputError
from specdec.files import write_json
from specdec.target import TargetModel
from specdec.training.store import fingerprint

CONFIG, WEIGHTS, FORMAT = "drafter.json", "drafter.safetensors", 1


def save_parts(module: nn.Module, config: Mapping[str, Any], target: TargetModel, folder: Path) -> None:
    """`drafter.safetensors`, in fp16, and `drafter.json`: the config, and the target it was trained for."""
    state = {name: t.half() if t.is_floating_point() else t for name, t in module.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    whose = {"format": FORMAT, "target": target.name, "target_weights": fingerprint(target)}
    write_json(folder / CONFIG, {**whose, **config})


def read_parts(folder: Path, drafter: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors; `drafter`: whose they should be; `what`: the option that named them.

    Raises:
        InputError: none there, corrupt ones, or another drafter's.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        state = load_file(folder / WEIGHTS)
        if config["drafter"] != drafter:
            raise ValueError(f"of the drafter {config['drafter']}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(
            what,
            expected=f"a folder with {CONFIG} and {WEIGHTS} of the drafter {drafter}",
            got=f"{str(folder)!r} ({why})",
            fix=f"check the path, or train one with `python -m experiments.train drafter={drafter}`",
        ) from error
    return config, state


def fill(
    module: nn.Module, config: Mapping[str, Any], state: Mapping[str, Tensor], target: TargetModel, what: str
) -> None:
    """Put the tensors into the module, on the target's device and in its precision. Another fingerprint than that of
    the weights it was trained on is warned of: the text stays the target's, only acceptance may suffer.

    Raises:
        InputError: it was trained for a target of another shape.
    """
    ours, theirs = module.state_dict(), state
    wrong = [name for name in {*ours, *theirs} if name not in ours or name not in theirs]
    wrong = wrong or [name for name in ours if ours[name].shape != theirs[name].shape]
    vocabulary = next((tensor for name, tensor in theirs.items() if name.endswith("vocabulary")), torch.zeros(1))
    if wrong or int(vocabulary.max()) >= target.vocab_size:
        raise InputError(
            what,
            expected=f"one for a target built like {target.name}",
            got=f"one for {config['target']!r} ({min(wrong) if wrong else 'its vocabulary'} does not fit)",
            fix="choose the target it was trained for",
        )
    if config["target_weights"] != fingerprint(target):
        name = config["target"]
        warnings.warn(f"{what}: trained on other weights ({name!r}) than those of {target.name}", stacklevel=3)
    module.load_state_dict(dict(theirs))
    module.to(target.device, target.dtype).eval()
