"""Checkpoints of a training run: written atomically, the last few kept, and never resumed with another config."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, load
from safetensors import SafetensorError

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.durable import SEAL, UNFINISHED, is_whole, naming, put_in_place, remove, seal, write_json

FIGURES = "figures.json"
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError, SafetensorError)


class Checkpoints:
    """Save and load `folder/checkpoints/step-N/`: module, optimizer, scaler, and the random states of each process.

    Args:
        folder: the run's folder.
        accelerator: writes and reads the state.
        config: options that the run's results depend on.
        keep: number of checkpoints to keep.

    Raises:
        InputError: the folder holds a run with another config, or `keep` < 1.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, config: Mapping[str, Any], keep: int) -> None:
        if keep < 1:
            raise InputError("keep", expected="an integer >= 1", got=repr(keep), fix="keep one checkpoint at least")
        self._folder, self._accelerator, self._keep = folder / "checkpoints", accelerator, keep
        self._latest = self._newest_whole()
        file = folder / "config.json"
        if self.latest is None:
            if accelerator.is_main_process:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(file, config)
            return
        before, now = flat(_config(file)), flat(json.loads(json.dumps(config)))
        if differing := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
            changes = ", ".join(f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in differing)
            raise InputError(
                str(folder), expected="the config its run was begun with", got=f"other values of {changes}",
                fix="restore them, or begin another run with folder=...",
            )  # fmt: skip

    @property
    def latest(self) -> int | None:
        """Step of the newest undamaged checkpoint; if all are damaged, of the newest, which `load` refuses."""
        return self._latest

    def save(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write a checkpoint atomically, then remove the oldest ones.

        Args:
            step: number of steps that are done.
            figures: JSON values that `load` returns.

        Raises:
            OSError: writing failed; the error names the checkpoint, and earlier ones stay.
        """
        path = self._folder / f"step-{step}"
        unfinished = path.with_name(f".{path.name}{UNFINISHED}")
        with naming(path):
            if self._accelerator.is_main_process:
                remove(unfinished)
            self._accelerator.wait_for_everyone()
            self._accelerator.save_state(str(unfinished))
            self._accelerator.wait_for_everyone()
            if self._accelerator.is_main_process:
                write_json(unfinished / FIGURES, figures)
                seal(unfinished)
                put_in_place(unfinished, path)
                for old in sorted(self._steps())[: -self._keep]:
                    remove(self._folder / f"step-{old}")
        self._latest = step
        self._accelerator.wait_for_everyone()

    def load(self, step: int) -> dict[str, Any]:
        """Restore all state and return the figures that were saved with it.

        Raises:
            InputError: a file is missing or cannot be read, for example this process's random states.
        """
        folder = self._folder / f"step-{step}"
        try:
            self._accelerator.load_state(str(folder))
            self._require_random_states(folder)
            return dict(read_json(folder / FIGURES))
        except UNREADABLE as error:
            raise InputError(
                str(folder), expected=f"the whole checkpoint of a run of {self._accelerator.num_processes} processes",
                got=str(error).partition("\n")[0] or type(error).__name__,
                fix="run as many processes as before; or delete it, to go on from the checkpoint before",
            ) from error  # fmt: skip

    def _require_random_states(self, folder: Path) -> None:
        """Refuse random states that were not restored; accelerate only logs this."""
        file = folder / f"{RNG_STATE_NAME}_{self._accelerator.process_index}.pkl"
        states = load(file)
        same = torch.equal(states["torch_manual_seed"], torch.get_rng_state())
        if torch.cuda.is_available():
            pairs = zip(states["torch_cuda_manual_seed"], torch.cuda.get_rng_state_all(), strict=True)
            same = same and all(torch.equal(stored, now) for stored, now in pairs)
        if not same:
            raise ValueError(f"random states in {file.name} that could not be restored")

    def _newest_whole(self) -> int | None:
        steps = sorted(self._steps(), reverse=True)
        for step in steps:
            folder = self._folder / f"step-{step}"
            if is_whole(folder, deep=True) or not (folder / SEAL).exists():  # an older version sealed none
                return step
            warnings.warn(f"checkpoint {folder} is damaged and left out", stacklevel=3)
        return max(steps, default=None)

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step-") for path in self._folder.glob("step-*")]
        return [int(name) for name in names if name.isdigit()]


def _config(file: Path) -> dict[str, Any]:
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            str(file), expected="the config that its run was begun with", got=f"{type(error).__name__}: {error}",
            fix="restore it, or begin another run with folder=...",
        ) from error  # fmt: skip


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys: {"a": {"b": 1}} becomes {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
