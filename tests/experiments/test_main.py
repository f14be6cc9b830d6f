"""`python -m experiments`: the list of commands, and running one of them."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from experiments import __main__ as entry
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


@pytest.mark.parametrize(("name", "fix"), [("suite", "it is called ratios now"), ("bensh", "check the spelling")])
def test_an_unknown_command_is_one_line(
    name: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["specdec", name])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 2
    assert f"got '{name}'; {fix}" in capsys.readouterr().err
