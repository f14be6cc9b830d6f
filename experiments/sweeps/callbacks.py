"""Hydra callback of every sweep: begins the sweep on disk, and compares its jobs when the launcher returns."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.common.entry import SOME_FAILED, explain, one_line_errors
from experiments.sweeps import sweep
from experiments.sweeps.report import show

_under_way: list[
    tuple[Path, bool]
] = []  # the sweep of this process: its folder, and whether to write a page at the end


class CompareJobs(Callback):
    """Begin a sweep and compare its jobs. All data is read from the jobs' folders, because they may run anywhere."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        with errors_that_end():
            resume = bool(OmegaConf.select(config, "sweep.resume", default=False))
            sweep.begin(folder, list(config.hydra.overrides.task), planned(config), resume)
        _under_way.append((folder, bool(OmegaConf.select(config, "report", default=False))))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with errors_that_end():
            finish()


@contextmanager
def errors_that_end() -> Iterator[None]:
    """End the process at any error, because Hydra turns exceptions of a callback into warnings."""
    try:
        with one_line_errors():
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


@contextmanager
def sweep_that_ends() -> Iterator[None]:
    """If a launcher or sweeper dies or is interrupted, compare the jobs so far, and say how to resume."""
    try:
        yield
    except BaseException as error:
        if not _under_way:
            raise
        folder, _ = _under_way[0]
        if not any(job.folder for job in sweep.read(folder).jobs):
            sweep.undo(folder)
            raise
        if isinstance(error, Exception):
            why = explain(error) or f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"error: the sweep ended early: {why}", file=sys.stderr)
            finish()
            sys.exit(SOME_FAILED)
        with suppress(SystemExit):  # an interrupt keeps its own status
            finish()
        raise
    finally:
        _under_way.clear()


def finish() -> None:
    """Compare the jobs. Ends the process with the status `SOME_FAILED` if some have not finished."""
    folder, page = _under_way.pop()
    found = sweep.read(folder)
    show(found, page)
    if found.unfinished:
        print(
            f"error: {len(found.unfinished)} of {len(found.jobs)} jobs have not finished; run them with the same "
            f"command and sweep.resume=true hydra.sweep.dir={folder}",
            file=sys.stderr,
        )
        sys.exit(SOME_FAILED)


def planned(config: DictConfig) -> list[list[str]] | None:
    """Return the overrides of each job, or None if the sweeper chooses them during the sweep."""
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return None
    lines = [f"{key}={value}" for key, value in (sweeper.params or {}).items()] + list(config.hydra.overrides.task)
    hydra = GlobalHydra.instance()
    loader: ConfigLoader | None = hydra.config_loader() if hydra.is_initialized() else None
    try:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
        return BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException:
        return None  # the sweeper will report what is wrong
