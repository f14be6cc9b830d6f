"""Ctrl-C, SIGTERM and SIGHUP: what is finished stays, the status says interrupted, the exit status names the signal."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.processes import run, signalled
from tests.faults.scenarios import SCENARIOS, require_whole_files

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.fault("signal")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "part"), [("bench", 0.6), ("bench", 0.8), ("train", 0.3), ("self_distill", 0.5)])
def test_a_signal_ends_a_run_in_order(
    name: str, part: float, number: signal.Signals, whole: Callable[[str], Whole], inputs: Path, folder: Path
) -> None:
    scenario = SCENARIOS[name]
    arguments = scenario.arguments(folder, inputs)
    done = run(scenario.entry, arguments, folder, at=int(whole(name).changes * part), act=signalled(number))
    assert done.status == SIGNALS[number], done.err
    assert "Traceback" not in done.err
    require_whole_files(folder)
    if name != "self_distill":
        assert json.loads((folder / "run" / "provenance.json").read_text())["status"] == "interrupted"
        assert "interrupted: " in done.err
    if name == "self_distill":
        assert f"texts are kept in {folder / 'text'}: run the same command again to go on" in done.err
    if name == "train":
        assert list((folder / "run" / "checkpoints").glob("step-?"))
    done = run(scenario.entry, arguments, folder)
    assert done.status == 0, done.err
    assert scenario.result(folder) == whole(name).result
