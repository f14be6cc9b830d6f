"""The config beside the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from specdec.errors import InputError
from specdec.training.checkpoints import Checkpoints


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, Accelerator(cpu=True), {"seed": 0}, keep=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made = checkpoints(tmp_path)
    for step in (3, 6, 9):
        made.save(step, {"loss": step})
    return tmp_path


@pytest.mark.parametrize("text", ["", "[1]", '{"seed"', "[" * 100_000])
def test_a_config_that_cannot_be_read_is_one_line(text: str, saved: Path) -> None:
    (saved / "config.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"config.json: expected the config that its run was begun with") as caught:
        checkpoints(saved)
    assert "\n" not in str(caught.value)
    assert json.loads((saved / "checkpoints" / "step-9" / "figures.json").read_text("utf-8")) == {"loss": 9}
