"""Make once what the faults are injected into; count what was tried and survived."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import run
from tests.faults.scenarios import BENCH, SCENARIOS, TEXT, TRAIN


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed: its folder, how many changes to files it made, and its result."""

    folder: Path
    changes: int
    result: Any


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, a folder of text, a recorded run, trained heads; and the kernels, compiled."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = [{"question_id": i, "category": "test", "turns": [f"tell me number {i}"]} for i in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for entry, arguments in (
        ("bench", [f"hydra.run.dir={folder}/recorded", *BENCH, "record=true", "drafter=ngram"]),
        ("self_distill", [f"hydra.run.dir={folder}/log", f"folder={folder}/text",
                          f"prompts.path={folder}/prompts.jsonl", *TEXT]),
        ("train", [f"folder={folder}/trained", f"data={folder}/text", *TRAIN]),
    ):  # fmt: skip
        done = run(entry, arguments, folder)
        assert done.status == 0, done.err
    (folder / "trained" / "drafter").rename(folder / "heads")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder that a run works in."""
    place = tmp_path / "place"
    place.mkdir()
    return place


@pytest.fixture(scope="session")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Return the result of a scenario's run that nothing disturbs; each is run once."""

    @functools.cache
    def of(name: str) -> Whole:
        scenario, folder = SCENARIOS[name], tmp_path_factory.mktemp(f"whole-{name}")
        done = run(scenario.entry, scenario.arguments(folder, inputs), folder)
        assert done.status == 0, done.err
        return Whole(folder, done.operations, scenario.result(folder))

    return of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test, also those of other folders, the row of the table that it counts in."""
    for item in items:
        if (marker := item.get_closest_marker("fault")) is not None:
            item.user_properties.append(("fault", marker.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            row = dict(report.user_properties).get("fault")
            if row is not None and (report.when == "call" or outcome == "skipped"):
                counts.setdefault(row, Counter())[outcome] += 1
    lines = ["", "| fault | tried | survived |", "| --- | --- | --- |"]
    for row, found in sorted(counts.items()):
        skipped = f" ({found['skipped']} could not be tried here)" if found["skipped"] else ""
        lines.append(f"| {row} | {found['passed'] + found['failed']}{skipped} | {found['passed']} |")
    tried, survived = (sum(c["passed"] + extra * c["failed"] for c in counts.values()) for extra in (1, 0))
    for line in (*lines, f"| all | {tried} | {survived} |"):
        terminalreporter.write_line(line)
