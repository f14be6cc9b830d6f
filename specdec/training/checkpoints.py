"""Checkpoints of a training run: whole or absent, the last few kept, and never continued under another config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from specdec.errors import InputError
from specdec.files import write_json


class Checkpoints:
    """`folder/checkpoints/step-N/`, written by accelerate: module, optimizer, scaler, each process's random states.

    config: what the run's results depend on; `keep`: how many checkpoints stay.

    Raises:
        InputError: the folder holds a run with another config, or `keep` is under 1.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, config: Mapping[str, Any], keep: int) -> None:
        if keep < 1:
            raise InputError("keep", expected="an integer >= 1", got=keep, fix="keep one checkpoint at least")
        self._folder, self._accelerator, self._keep = folder / "checkpoints", accelerator, keep
        file = folder / "config.json"
        if self.latest is None:
            if accelerator.is_main_process:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(file, config)
            return
        before, now = flat(json.loads(file.read_text("utf-8"))), flat(json.loads(json.dumps(config)))
        if differing := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
            changes = ", ".join(f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in differing)
            raise InputError(
                str(folder), expected="the config its run was begun with", got=f"other values of {changes}",
                fix="restore them, or begin another run with folder=...",
            )  # fmt: skip

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return max(self._steps(), default=None)

    def save(self, step: int) -> None:
        """Write all state beside its place, then rename; older checkpoints go."""
        unfinished = self._folder / f"step-{step}.unfinished"
        if self._accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(unfinished))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            unfinished.rename(self._folder / f"step-{step}")
            for old in sorted(self._steps())[: -self._keep]:
                shutil.rmtree(self._folder / f"step-{old}")
        self._accelerator.wait_for_everyone()

    def load(self, step: int) -> None:
        self._accelerator.load_state(str(self._folder / f"step-{step}"))

    def _steps(self) -> list[int]:
        names = [path.name.removeprefix("step-") for path in self._folder.glob("step-*")]
        return [int(name) for name in names if name.isdigit()]


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} becomes {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out
