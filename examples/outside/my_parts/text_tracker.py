"""Example of a custom tracker: it appends a line per finished run to a text file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.runs.log import Artifacts, Label


class TextTracker:
    """Write the name and the figures of each run to a file.

    Args:
        file: path of the text file.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None:
        """Begin a run.

        Args:
            folder: the run folder.
            config: the configuration of the run.
            label: name of the run, and the group of its sweep.
        """
        self._name = label.name

    def steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Receive the lines for `steps.jsonl`, one generation at a time."""

    def training(self, record: Mapping[str, Any]) -> None:
        """Receive a line of `train.jsonl`."""

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        """End the run.

        Args:
            summary: as in `summary.json`, or {"status": ...} if the run ended early.
            artifacts: files of the run.
        """
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{self._name}: {summary.get('tokens_per_step', summary.get('status'))}\n")
