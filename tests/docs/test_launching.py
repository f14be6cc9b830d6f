"""Every command of docs/launching.md: those of Hydra compose, job by job, and the others take their arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.common.components import check_options
from experiments.common.settings import settings
from tests.support.configs import CONF

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "launching.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, re.S)
    for line in block.splitlines()
    if line.startswith("python -m experiments.")
]
OUTSIDE = f"hydra.searchpath=[file://{ROOT / 'examples' / 'outside' / 'conf'}]"


def entry(command: str) -> tuple[str, list[str]]:
    """The entry point and its arguments."""
    _, _, module, *words = shlex.split(command)
    return module.removeprefix("experiments."), words


def is_hydra(command: str) -> bool:
    return (CONF / f"{entry(command)[0]}.yaml").exists()


def test_the_page_has_commands_of_both_kinds() -> None:
    assert len(COMMANDS) >= 12
    assert {is_hydra(command) for command in COMMANDS} == {True, False}


@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/\w+' is validated:UserWarning")  # as in `entry.launch`
@pytest.mark.parametrize("command", [command for command in COMMANDS if is_hydra(command)])
def test_it_composes(command: str) -> None:
    if "sweeper=search" in command:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    name, words = entry(command)
    outside = "--config-dir" in words
    overrides = [word for word in words if "=" in word and not word.startswith("allow_targets=")]
    search = "sweeper=search" in command  # it takes the range itself
    parsed = [] if search else OverridesParser.create().parse_overrides(overrides)
    jobs = [overrides[:-1]] if search else BasicSweeper.split_arguments(parsed, None)[0]
    assert len(jobs) > 1 or "-m" not in words or search
    for job in jobs:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(name, overrides=[*job, *([OUTSIDE] if outside else [])], return_hydra_config=True)
        cfg.hydra = {}
        if not outside:  # what lies outside has to be allowed on a command line; tests/examples/test_outside.py does it
            check_options(cfg)
            settings(cfg)


@pytest.mark.parametrize("command", [command for command in COMMANDS if not is_hydra(command)])
def test_it_takes_its_arguments(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is there to read, and that is all that is wrong."""
    name, words = entry(command)
    monkeypatch.chdir(tmp_path)
    main: Callable[..., None] = import_module(f"experiments.{name}").main
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.startswith("error: folder: expected a folder")
