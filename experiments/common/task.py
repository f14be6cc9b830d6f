"""Run the function of an entry point for one job: alone, or as a job of a sweep in any process of a launcher.

A job of a sweep writes a record, `job.json`, into its folder. If it fails, it prints one line, and the sweep goes on.
`experiments.sweeps.sweep` reads the records.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.common.components import ALLOW
from experiments.common.composition import allowed_here, hide_secrets
from experiments.common.entry import explain, ignore_schemas_of_launchers, one_line_errors
from experiments.common.resources import claim_resources
from experiments.common.signals import stopping
from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.claims import claim
from specdec.files.durable import write_json
from specdec.runs.provenance import this_process

JOB = "job.json"
Function = Callable[[DictConfig], Any]


class Task:
    """Decorator for the function below `hydra.main`.

    Launchers send it to other processes by its name, so nothing of its module has to be pickled. The names that the
    user's command line allowed are sent with it.

    Args:
        function: the function of the entry point.
        allowed: names of `allow_targets`.
    """

    def __init__(self, function: Function, allowed: Sequence[str] = ()) -> None:
        self._function, self._allowed = function, allowed
        functools.update_wrapper(self, function)

    def __call__(self, cfg: DictConfig) -> Any:
        if self._allowed and ALLOW not in cfg:  # in a launcher's process, which composed the config again
            with open_dict(cfg):
                cfg[ALLOW] = list(self._allowed)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            return run_in_sweep(self._function, cfg)
        with one_line_errors():
            return self._function(cfg)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        module = self._function.__module__
        if module == "__main__":
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            if spec is None:  # a script, not `python -m`: it cannot be imported
                return sent, (self._function, allowed_here())
            module = spec.name
        return named, (module, self._function.__qualname__, allowed_here())


def named(module: str, name: str, allowed: Sequence[str]) -> Task:
    """Return the task of an entry point, imported by name."""
    found = getattr(import_module(module), name)
    while not isinstance(found, Task):
        found = found.__wrapped__  # unwraps the function of `hydra.main`
    return sent(found._function, allowed)


def sent(function: Function, allowed: Sequence[str]) -> Task:
    """Return a task in a launcher's process, with the rules of the process that sent it."""
    hide_secrets()
    ignore_schemas_of_launchers()
    return Task(function, allowed)


def run_in_sweep(function: Function, cfg: DictConfig) -> float | None:
    """Run one job of a sweep. Returns its objective, or None if it failed.

    If the sweep is resumed or Slurm restarts the job, a job that finished with the same config is not run again.
    """
    hydra = HydraConfig.get()
    folder, number = Path(hydra.runtime.output_dir), int(hydra.job.num)
    record: dict[str, Any] = {"number": number, "overrides": list(hydra.overrides.task), "config": digest(cfg)}
    label = f"job {number} ({' '.join(record['overrides'])})"
    again = OmegaConf.select(cfg, "sweep.resume", default=False) or "SLURM_RESTART_COUNT" in os.environ
    before = read_record(folder) if again else {}
    if before.get("status") == "finished" and before.get("config") == record["config"]:
        print(f"{label}: finished before, kept", file=sys.stderr)
        return before["value"]

    def note(status: str, **more: Any) -> None:
        write_json(folder / JOB, {**record, "status": status, "process": this_process(), **more})

    try:
        lock = claim(folder, resume=True)
    except InputError as error:  # the job was started twice; leave the other one's files alone
        print(f"error: {label}: {error}", file=sys.stderr, flush=True)
        return None
    note("running")
    try:
        claim_resources(cfg)
        with stopping():
            value = function(cfg)
    except (Exception, SystemExit) as error:
        line = f"it ended with status {error.code}" if isinstance(error, SystemExit) else explain(error)
        if line is None:  # a bug keeps its traceback
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}".strip()
        line = " ".join(line.split())
        note("failed", error=line)
        print(f"error: {label}: {line}", file=sys.stderr, flush=True)
        return None
    except BaseException:
        note("interrupted")
        raise
    finally:
        lock.release()
    value = None if value is None else float(value)
    note("finished", value=value)
    return value


def digest(cfg: DictConfig) -> str:
    """Return a hash of what a job computes: its config without the options of running the sweep."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    kept = {key: value for key, value in plain.items() if key not in ("sweep", "exclusive")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return a job's record, or {} if there is none that can be read."""
    try:
        record = read_json(folder / JOB)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
