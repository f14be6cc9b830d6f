"""A run that is killed at any change it makes to files loses nothing that was finished, and can be run again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.processes import run
from tests.faults.scenarios import SCENARIOS, copies, require_whole_files

KILLS = [(name, number) for name, scenario in SCENARIOS.items() for number in range(scenario.kills)]


@pytest.mark.fault("killed at the n-th change to a file")
@pytest.mark.parametrize(("name", "number"), KILLS)
def test_a_kill_loses_nothing(
    name: str, number: int, whole: Callable[[str], Whole], inputs: Path, folder: Path
) -> None:
    scenario = SCENARIOS[name]
    undisturbed = whole(name)
    arguments = scenario.arguments(folder, inputs)
    earlier = name in ("bench", "record", "simulate") and number % 2 == 1
    if earlier:  # a whole run is in the folder already
        shutil.copytree(undisturbed.folder, folder, dirs_exist_ok=True)
        before = (folder / "run" / "summary.json").read_text("utf-8")
    at = 1 + (undisturbed.changes - 1) * number // (scenario.kills - 1)
    killed = run(scenario.entry, arguments, folder, at=at)
    assert killed.status in (-9, 0), killed.err  # 0: the run made fewer changes than the first one
    require_whole_files(folder)
    again = arguments
    if name == "sweep" and (folder / "run" / "sweep.json").exists():
        again = [*arguments, "sweep.resume=true"]
    done = run(scenario.entry, again, folder)
    assert "Traceback" not in done.err
    if name == "convert_heads" and done.status == 2:  # the heads were all there: they are not written over
        assert "expected an empty folder, or none" in done.error
    else:
        assert done.status == 0, done.err
    assert scenario.result(folder) == undisturbed.result
    if earlier:
        assert before in list(copies(folder, "summary.json"))
