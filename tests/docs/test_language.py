"""Plain English, as far as a machine can see it: how docstrings begin, what they list, and how wide prose is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGES = ("specdec", "drafters", "verifiers", "experiments")
SOURCES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
TESTS = [file for folder in ("tests", "family_tests") for file in sorted((ROOT / folder).rglob("*.py"))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "drafters").rglob("*.md"))]
RIDDLES = ("Of ", "What ", "Whose ", "Itself")  # a docstring begins with a verb or a plain noun
MOST_PARAMETERS, WIDEST = 3, 100

Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def documented(file: Path) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, text


def name_of(node: Documented) -> str:
    return "module" if isinstance(node, ast.Module) else f"{node.name}, line {node.lineno}"


@pytest.mark.parametrize("file", SOURCES + TESTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_plainly(file: Path) -> None:
    assert [name_of(node) for node, text in documented(file) if text.startswith(RIDDLES)] == []


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_many_parameters_are_listed(file: Path) -> None:
    """A public function of more than three parameters documents them in a list, or says where they are documented."""
    bad = []
    for node, text in documented(file):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            many = len([a for a in taken if a.arg not in ("self", "cls")]) > MOST_PARAMETERS
            if many and not any(word in text for word in ("Args:", "rguments as in", "ptions as in", "as in `")):
                bad.append(name_of(node))
    assert bad == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_narrow(page: Path) -> None:
    code, wide = False, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if len(line) > WIDEST and not code and not line.startswith(("|", "![")) and " " in line.strip():
            wide.append(number)
    assert wide == []
