"""Packages that are not installed: one line that names the extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from specdec import extras
from specdec.errors import InputError
from specdec.extras import EXTRAS, require_extra
from specdec.prompts.sets import dataset
from tests.support.places import ROOT


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_names_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra(package, "x")
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(InputError) as error:
        require_extra(package, "x")
    assert f'got no such installation; pip install -e ".[{EXTRAS[package]}]"' in str(error.value)


def test_every_package_is_in_its_extra_and_in_all() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert any(line.startswith(package) for line in optional[extra])
        assert not any(line.startswith(package) for line in project["dependencies"])
    everything = optional["all"][0]
    assert all(extra in everything for extra in optional if extra not in ("all", "dev", "gpu", "triton"))


def test_prompts_of_a_data_set_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="prompts=dataset: expected the package datasets"):
        dataset("x")


def test_entry_points_say_what_they_need() -> None:
    hide = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'plotly' else f(n, *a)"
    )
    code = f"{hide}; import specdec; specdec.TargetModel; import experiments.bench"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: experiments: expected the package plotly, got no such installation; "
        'pip install -e ".[reports]", or ".[all]"\n'
    )
