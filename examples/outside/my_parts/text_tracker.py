"""A tracker of one's own: it appends a line per finished run to a text file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.runs.log import Artifacts, Label


class TextTracker:
    """Note each run's name and figures.

    file: grows by a line per run.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def start(self, folder: Path, config: Mapping[str, Any], label: Label) -> None:
        """Begin a run. label: its name, and the group of its sweep."""
        self._name = label.name

    def steps(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take the lines that `steps.jsonl` gets, a generation at a time."""

    def training(self, record: Mapping[str, Any]) -> None:
        """Take a line of `train.jsonl`."""

    def finish(self, summary: Mapping[str, Any], artifacts: Artifacts) -> None:
        """End the run. summary: as in `summary.json`; {"status": ...} if the run ended early."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{self._name}: {summary.get('tokens_per_step', summary.get('status'))}\n")
