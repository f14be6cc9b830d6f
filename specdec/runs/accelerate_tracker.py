"""One tracker class for all trackers that accelerate supports (TensorBoard, MLflow, Trackio and others)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from specdec.errors import InputError
from specdec.runs.log import Artifacts, Label, StepFigures

FOLDER = "tracked"  # subfolder of the run's folder, for trackers that write files
RUN_NAME = {  # the constructor's keyword for the run's name, for trackers that have one
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
}
KNOWN = sorted(set(LOGGER_TYPE_TO_CLASS) - {"wandb"})  # W&B has a class of its own


class AccelerateTracker:
    """Copy a run's records to one of accelerate's trackers.

    Steps of decoding are logged once per generation, as means over its steps, because each call may contact a server.

    Args:
        log_with: the tracker's name, as accelerate calls it.
        project: name of the project or experiment, for trackers that have one.
        options: passed to the tracker's constructor.

    Raises:
        InputError: an unknown name, or a package that is missing.
    """

    def __init__(self, log_with: str, project: str = "specdec", options: Mapping[str, Any] | None = None) -> None:
        if log_with not in KNOWN:
            fix = "pass tracker=wandb" if log_with == "wandb" else "check the spelling"
            raise InputError("tracker.log_with", expected=f"one of {', '.join(KNOWN)}", got=repr(log_with), fix=fix)
        if log_with not in map(str, get_available_trackers()):
            raise InputError(
                "tracker.log_with", expected=f"{log_with}, installed", got="no such package",
                fix=f"install it (pip install {log_with.replace('_', '-')}), or use tracker=none",
            )  # fmt: skip
        self._kind, self._project, self._options = log_with, project, dict(options or {})
        self._figures, self._texts = StepFigures(), 0
        self._tracker: GeneralTracker

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None:
        """Begin a run, and log its config by dotted names."""
        made, options = LOGGER_TYPE_TO_CLASS[self._kind], dict(self._options)
        if key := RUN_NAME.get(self._kind):
            options.setdefault(key, label.name)
        if made.requires_logging_directory:  # TensorBoard's project is a folder there
            options.setdefault("logging_dir", str(folder / FOLDER))
        self._tracker = made(self._project, **options)
        self._tracker.start()
        self._tracker.store_init_configuration({"run": label.name, "group": label.group or "", **_plain(config)})

    def steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = [self._figures.of(record) for record in records]
        if lines:
            self._texts += 1
            means = {name: fmean(line[name] for line in lines) for name in lines[0]}
            self._tracker.log({**means, "step/tokens_per_second": lines[-1]["step/tokens_per_second"]}, self._texts)

    def training(self, record: Mapping[str, Any]) -> None:
        self._tracker.log(dict(_numbers({k: v for k, v in record.items() if k != "step"})), record["step"])

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        """Log the summary's numbers. Artifacts are ignored: accelerate's trackers have no common method for files."""
        figures = dict(_numbers(summary))
        if figures:
            self._tracker.log({f"summary/{name}": value for name, value in figures.items()}, 0)
        self._tracker.finish()


def _plain(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return a config with dotted names. Values become text unless they are numbers, as trackers require."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _plain(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float) else str(value)
    return flat


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a summary by their path, such as "phase_ms/draft"; list entries are numbered from 1."""
    for key, value in figures.items():
        name = prefix + re.sub(r"[^\w./ -]", "_", str(key))  # MLflow takes no other letters
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _numbers({str(place): part for place, part in enumerate(value, 1)}, f"{name}/")
        elif isinstance(value, int | float):
            yield name, value
