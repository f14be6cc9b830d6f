"""Save and load the trained parts of a drafter, with the name of the drafter and of its target.

Tensors that belong to the target are not saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.durable import write_json
from specdec.files.weights import read_tensors, require_finite
from specdec.model.target import TargetModel
from specdec.training.text.texts import fingerprint

CONFIG, WEIGHTS, FORMAT = "drafter.json", "drafter.safetensors", 1
MOST = 256  # largest count that a config may hold (layers, heads, blocks)


def save_parts(module: nn.Module, config: Mapping[str, Any], target: TargetModel, folder: Path) -> None:
    """Write `drafter.safetensors` in fp16, and `drafter.json` with the config and the target.

    Args:
        module: the trained part.
        config: what is needed to build the module again.
        target: the model that the module was trained for.
        folder: an existing folder.
    """
    state = {name: t.half() if t.is_floating_point() else t for name, t in module.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    whose = {"format": FORMAT, "target": target.name, "target_weights": fingerprint(target)}
    write_json(folder / CONFIG, {**whose, **config})


def read_parts(
    folder: Path, drafter: str, target: TargetModel, what: str, kinds: Mapping[str, type]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read config and tensors, and check that a module can be built from them.

    Args:
        folder: the folder that `save_parts` wrote.
        drafter: name of the drafter that the files must belong to.
        target: the model to draft for.
        what: name used in error messages.
        kinds: the required entries of the config and their types; `int` is a count from 0 to `MOST`.

    Raises:
        InputError: the files are missing or corrupt, belong to another drafter, or name tokens that the target lacks.
    """
    try:
        config = read_json(folder / CONFIG)
        state = read_tensors(folder / WEIGHTS)
        require_finite(state)
        _require_config(config, drafter, kinds)
        vocabularies = [tensor for name, tensor in state.items() if name.endswith("vocabulary")]
        for ids in vocabularies:
            if ids.dtype is not torch.int64 or ids.ndim != 1 or not len(ids) or int(ids.min()) < 0:
                raise ValueError("a vocabulary that is no list of token ids")
    except (OSError, ValueError) as error:
        why = f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}"
        raise InputError(
            what,
            expected=f"a folder with {CONFIG} and {WEIGHTS} of the drafter {drafter}",
            got=f"{str(folder)!r} ({why})",
            fix=f"check the path, or train one with `python -m experiments.train drafter={drafter}`",
        ) from error
    if any(int(ids.max()) >= target.vocab_size for ids in vocabularies):
        raise _misfit(what, config, target, "its vocabulary")
    return config, state


def _require_config(config: Any, drafter: str, kinds: Mapping[str, type]) -> None:
    """Check the entries of a config.

    Raises:
        ValueError: an entry is missing or wrong; the message names it.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds no object")
    if config.get("drafter") != drafter:
        raise ValueError(f"of the drafter {config.get('drafter')!r}")
    for name, kind in {"target": str, "target_weights": str, **kinds}.items():
        value = config.get(name)
        counts = not isinstance(value, int) or 0 <= value <= MOST
        if type(value) is not kind or not counts:
            expected = f"a number from 0 to {MOST}" if kind is int else f"of type {kind.__name__}"
            raise ValueError(f"{name} in {CONFIG} must be {expected}, not {value!r}"[:200])


def fill(
    module: nn.Module, config: Mapping[str, Any], state: Mapping[str, Tensor], target: TargetModel, what: str
) -> None:
    """Copy the tensors into the module, and move it to the target's device and precision.

    Warns if the target's weights are not those that the module was trained on: the text stays that of the target, but
    fewer tokens may be accepted.

    Args:
        module: the module to fill.
        config, state: as `read_parts` returns them.
        target: the model to draft for.
        what: name used in error messages.

    Raises:
        InputError: the tensors were trained for a target of another shape.
    """
    ours, theirs = module.state_dict(), state
    wrong = [name for name in {*ours, *theirs} if name not in ours or name not in theirs]
    wrong = wrong or [name for name in ours if ours[name].shape != theirs[name].shape]
    wrong = wrong or [name for name in ours if ours[name].is_floating_point() != theirs[name].is_floating_point()]
    if wrong:
        raise _misfit(what, config, target, min(wrong))
    if config["target_weights"] != fingerprint(target):
        name = config["target"]
        warnings.warn(f"{what}: trained on other weights ({name!r}) than those of {target.name}", stacklevel=3)
    module.load_state_dict(dict(theirs))
    module.to(target.device, target.dtype).eval()


def _misfit(what: str, config: Mapping[str, Any], target: TargetModel, part: str) -> InputError:
    return InputError(
        what,
        expected=f"one for a target built like {target.name}",
        got=f"one for {config['target']!r} ({part} does not fit)",
        fix="choose the target it was trained for",
    )
