"""Every command that README, docs, cards and docstrings print can be composed."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.__main__ import commands
from experiments.common.components import check_options
from experiments.common.entry import CONF, ignore_schemas_of_launchers
from tests.support.places import ROOT

PLACEHOLDER = "WHATEVER"  # stands for "..."
COMMAND = re.compile(r"(?:python|accelerate launch[^\n]*?) -m experiments\.(\w+)((?: [^\n`]*)?)")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "decisions"),  # which tells of the past
    *sorted((ROOT / "drafters" / "weights").rglob("README.md")),
    *sorted(
        path
        for package in ("experiments", "specdec", "drafters", "verifiers")
        for path in (ROOT / package).rglob("*.py")
    ),
    *sorted((ROOT / "conf").rglob("*.yaml")),
]


def printed(text: str, variables: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each command with its words; variables have the values that the page, or the text `variables`, sets."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(
        r"(?<!`)`(?!`)([^`]*)`(?!`)", lambda m: f"`{' '.join(m[1].split())}`", text
    )  # inline code that was wrapped
    values = dict(re.findall(r'^(\w+)="([^"]*)"$', re.sub(r"\\\n\s*", " ", variables) + text, re.M))
    for found in COMMAND.finditer(text):
        line = re.sub(r"\$(\w+)", lambda m: values.get(m[1], m[0]), found[2])
        line = re.split(r"  |: | \(| \| |#", line.replace("...", PLACEHOLDER))[0].rstrip(").,;: ")
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ValueError(f"not a command: {line}") from error
        yield found[1], words


def all_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Each command once, with the first page that prints it."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.suffix == ".py":
            tree = ast.parse(text)
            nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
            text = "\n".join(filter(None, map(ast.get_docstring, nodes)))
        above = page.parent.parent / page.name
        for name, words in printed(text, above.read_text("utf-8") if above in PAGES else ""):
            found.setdefault((name, tuple(words)), str(page.relative_to(ROOT)))
    return [(page, *command) for command, page in found.items()]


def config_name(name: str) -> str | None:
    """The config of an entry point; None for one that takes plain arguments."""
    found = re.search(r'config_name="(\w+)"', (ROOT / "experiments" / f"{name}.py").read_text("utf-8"))
    return found[1] if found else None


@pytest.mark.parametrize(
    ("page", "name", "words"),
    all_commands(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:80],
)
def test_a_printed_command_is_composed(
    page: str, name: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in commands(), f"{page}: there is no such command"
    if (config := config_name(name)) is None:
        parse(name, words)
        return
    overrides, flags = [w for w in words if not w.startswith("-")], [w for w in words if w.startswith("-")]
    assert set(flags) <= {"-m", "--multirun", "--help", "--config-dir", "--cfg"}
    own = "--config-dir" in words
    if own:
        overrides.remove(words[words.index("--config-dir") + 1])
    overrides = [o for o in overrides if not o.startswith("allow_targets=") and PLACEHOLDER not in o]
    if "drafter=repeat" in overrides:
        pytest.skip("the page makes this drafter: test_pages.py runs it")
    if own or (any(o.startswith("hydra/") for o in overrides) and not plugins()):
        pytest.skip("names files or plugins that are not part of the default installation")
    ignore_schemas_of_launchers()
    with initialize_config_dir(CONF, version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        jobs = BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)[0]
        for job in (jobs[0], jobs[-1])[: len(jobs)]:
            cfg = compose(config, overrides=job, return_hydra_config=True)
            monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg.copy())  # some options name the job's choices
            cfg.hydra = {}
            check_options(cfg)


def plugins() -> bool:
    try:
        import_module("hydra_plugins.hydra_submitit_launcher")
    except ImportError:
        return False
    return True


def parse(name: str, words: tuple[str, ...]) -> None:
    """Let argparse read the words, without running the command."""

    class Read(Exception):
        pass

    def read(self: argparse.ArgumentParser, *args: object, **options: object) -> None:
        argparse.ArgumentParser.parse_known_args(self, [*words])
        raise Read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", read)
        with pytest.raises(Read):
            import_module(f"experiments.{name}").main()


def test_there_are_commands_to_check() -> None:
    assert len(all_commands()) > 100


@pytest.mark.parametrize("page", [p for p in PAGES if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_readme_stays_short_and_narrow() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 180
    assert max(map(len, lines)) <= 100
    assert not set("".join(lines)) & set("┃│━─┏┗")
