"""The packages are ours, and the fences between the rooms hold (beyond what import-linter sees)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import drafters
import experiments
import specdec
import verifiers
from specdec.runs import provenance as origin

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("package", [specdec, drafters, verifiers, experiments], ids=lambda p: p.__name__)
def test_the_packages_imported_are_ours(package: object) -> None:
    assert Path(str(package.__file__)).resolve().parents[1] == ROOT  # type: ignore[attr-defined]


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "verifiers").mkdir()
    (tmp_path / "verifiers" / "__init__.py").touch()
    first, then = (f"sys.path[:{n}] = [{str(path)!r}]" for n, path in enumerate((tmp_path, ROOT)))
    code = f"import sys; {first}; import verifiers; {then}; import experiments"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert f"the package 'verifiers' was imported from {tmp_path}, expected {ROOT}" in done.stderr


@pytest.mark.parametrize(
    ("word", "room"),
    [("flash_attn", "specdec/model/attention"), ("wandb", "specdec/runs/log.py"), ("hydra", "experiments")],
)
def test_only_one_room_names_it(word: str, room: str) -> None:
    imports = (f"import {word}", f"from {word}", f'import_module("{word}"')
    for file in [f for p in ("specdec", "drafters", "verifiers", "experiments") for f in (ROOT / p).rglob("*.py")]:
        if not str(file.relative_to(ROOT)).startswith(room):
            assert not any(line in file.read_text("utf-8") for line in imports), file


def test_the_ends_of_the_range_of_transformers_are_those_that_are_tested() -> None:
    (low, high), (oldest, newest) = (
        re.search(r'"transformers>=([0-9.]+),<([0-9.]+)"', (ROOT / "pyproject.toml").read_text("utf-8")).groups(),
        re.search(r"ENDS +:= ([0-9.]+) ([0-9.]+)", (ROOT / "Makefile").read_text("utf-8")).groups(),
    )
    assert oldest == f"{low}.0"
    major, minor, _ = map(int, newest.split("."))
    assert high == f"{major}.{minor + 1}"


def test_a_commit_is_that_of_this_project_or_none(tmp_path: Path) -> None:
    """Neither a copy below the top of another repository nor one at its top is taken for a checkout."""
    assert origin._is_checkout(ROOT)
    package = tmp_path / "specdec"
    shutil.copytree(ROOT / "specdec", package, ignore=shutil.ignore_patterns("__pycache__"))
    for place in (tmp_path.parent, tmp_path):
        subprocess.run(["git", "init", "-q", str(place)], check=True)
        code = "import specdec.runs.provenance as r; p = r.provenance(); print(p['commit'], p['version'])"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
        assert done.stdout.split() == ["None", str(origin._version(origin.DISTRIBUTION))]
        shutil.rmtree(place / ".git")
