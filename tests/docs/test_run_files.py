"""docs/run-files.md lists every key of a run's files, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import bench
from tests.support.places import ROOT

RUN = (
    "target=tiny",
    "target.device=cpu",
    "tracker=none",
    "report=false",
    "generation.max_new_tokens=6",
    "prompts.limit=2",
)


def keys(file: str) -> set[str]:
    """The keys in the first column of a section's table."""
    page = (ROOT / "docs" / "run-files.md").read_text("utf-8")
    section = page.split(f"## {file}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.fixture
def written(call: Callable[..., tuple], tmp_path: Path) -> dict[str, set[str]]:
    status, summary, out = call(bench.main, *RUN)
    assert status == 0, out
    found = {
        "summary.json": set(summary),
        "provenance.json": set(json.loads((tmp_path / "provenance.json").read_text())),
    }
    for name in ("steps.jsonl", "generations.jsonl"):
        found[name] = set(json.loads((tmp_path / name).read_text("utf-8").splitlines()[0]))
    return found


def test_every_key_is_documented(written: dict[str, set[str]]) -> None:
    for file, found in written.items():
        assert keys(file) == found, file
