"""A Hydra callback: each run and each sweep claims its folder before Hydra writes the first file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from experiments.common.entry import one_line_errors
from specdec.files.claims import claim, claim_new


class ClaimFolder(Callback):
    """Claim the folder of a run or sweep.

    - If the name contains the time, the folder is a new one: if it exists, a number is added to the name.
    - Any other folder is claimed as it is. It is refused while a run in it is alive. An earlier run in it is set aside.

    Args:
        resume: continue an earlier run in a named folder instead of setting it aside.
    """

    def __init__(self, resume: bool = False) -> None:
        self._resume = resume
        self._lock: FileLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, because launchers send callbacks to the processes of jobs."""
        return {"_resume": self._resume, "_lock": None}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if int(os.environ.get("RANK", "0")) == 0:  # processes of one run share its folder
            self._claim(config, "run", self._resume)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._release()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._claim(config, "sweep", resume=True)  # `sweep.begin` checks whether the sweep may continue there
        folder = str(config.hydra.sweep.dir).replace("\\", "\\\\").replace("'", "\\'")
        with read_write(config.hydra.overrides):  # each job's config is composed again
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._release()

    def _claim(self, config: DictConfig, mode: str, resume: bool) -> None:
        named = config.hydra[mode]
        written = str(OmegaConf.to_container(named, resolve=False)["dir"])  # type: ignore[call-overload,index]
        folder = Path(str(named.dir))
        with one_line_errors():  # Hydra turns exceptions in callbacks into warnings, but not SystemExit
            if "${now:" in written:
                folder, self._lock = claim_new(folder)
            else:
                self._lock = claim(folder, resume=resume)
        with read_write(named):
            named.dir = str(folder)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
