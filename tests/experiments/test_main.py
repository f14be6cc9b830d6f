"""`python -m experiments`: the list of commands, and running one of them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from experiments import __main__ as entry
from experiments.common.entry import CONF, explain
from tests.support.places import ROOT


def test_every_entry_point_is_listed_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments"])
    entry.main()
    out = capsys.readouterr().out
    files = {file.stem for file in (ROOT / "experiments").glob("[a-z]*.py")}
    assert {name for name in entry.commands() if name != "__main__"} == files
    for name in files:
        line = (import_module(f"experiments.{name}").__doc__ or "").partition("\n")[0]
        assert len(line) > 10
        assert f"{name} " in out
        assert line in out


def test_a_command_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delitem(sys.modules, "experiments.report", raising=False)
    monkeypatch.setattr(sys, "argv", ["specdec", "report", "--help"])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 0
    assert "run folders" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "fix"),
    [("suite", "it is called ratios now"), ("bensh", "did you mean bench?"), ("xyz", "check the spelling")],
)
def test_an_unknown_command_is_one_line(
    name: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["specdec", name])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 2
    assert f"got '{name}'; {fix}" in capsys.readouterr().err


def test_a_renamed_module_says_its_new_name() -> None:
    done = subprocess.run([sys.executable, "-m", "experiments.suite"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "got experiments.suite; it is called ratios now" in done.stderr


@pytest.mark.parametrize("file", sorted(Path(CONF).glob("*.yaml")), ids=lambda file: file.stem)
def test_a_group_that_a_command_lacks_is_one_line(file: Path) -> None:
    text = file.read_text("utf-8")
    group = next(name for name in ("hardware", "recipe", "reference", "tracker") if f"- {name}" not in text)
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(ConfigCompositionException) as error:
        compose(file.stem, overrides=[f"{group}=none"])
    line = f"{group}: expected an option of this command, got {group}=none; leave it out (--help lists the options)"
    assert explain(error.value) == line
