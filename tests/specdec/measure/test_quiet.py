"""A busy machine is noticed, and a quiet one is not accused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

import experiments.bench
from specdec.measure import quiet
from specdec.measure.quiet import Conditions, Watch

TURNS = 11  # of the first ten built-in prompts, one of which is a conversation
Times = namedtuple("Times", "user system idle iowait steal guest guest_nice")


class Machine:
    """Counters of a machine with four cores that a test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.own = self.others = self.stolen = 0.0
        self.process = psutil.Process()
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(psutil, "cpu_times", self._times)
        monkeypatch.setattr(psutil.Process, "cpu_times", lambda _self: Times(self.own, 0, 0, 0, 0, 0, 0))

    def _times(self) -> Times:
        busy = self.own + self.others
        return Times(busy, 0.0, 4 * self.now - busy - self.stolen, 0.0, self.stolen, 0.0, 0.0)

    def passes(self, seconds: float, own: float, others: float = 0.0, stolen: float = 0.0) -> None:
        self.now += seconds
        self.own, self.others, self.stolen = self.own + own, self.others + others, self.stolen + stolen


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def watched(machine: Machine, **passes: float) -> Conditions:
    with Watch() as watch:
        machine.passes(**passes)
    return watch.conditions


def test_own_work_is_no_disturbance(machine: Machine) -> None:
    found = watched(machine, seconds=2.0, own=8.0)
    assert (found.seconds, found.cpu_seconds, found.others, found.stolen) == (2.0, 8.0, 0.0, 0.0)
    assert found.disturbed is None


@pytest.mark.parametrize(
    ("passes", "line"),
    [
        ({"others": 2.0}, "other processes used 25% of the machine's cores"),
        ({"stolen": 1.0}, "12% of the machine's cores was given to other machines"),
        ({"others": 0.4}, None),
    ],
)
def test_others_are_named_with_their_share(machine: Machine, passes: dict[str, float], line: str | None) -> None:
    assert watched(machine, seconds=2.0, own=2.0, **passes).disturbed == line


def test_a_run_too_short_to_tell_is_not_accused(machine: Machine) -> None:
    assert watched(machine, seconds=0.01, own=0.0, others=0.04).disturbed is None


def test_a_throttled_gpu_is_named() -> None:
    found = Conditions(1.0, 1.0, 0.0, 0.0, 0, None, None, {"throttled": ["heat"]}, None)
    assert found.disturbed == "the GPU was throttled (heat)"


def test_energy_is_read_where_the_machine_tells(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watched(machine, seconds=1.0, own=1.0).joules is None or quiet.RAPL.exists()
    monkeypatch.setattr(quiet, "RAPL", tmp_path)
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(str(value))
        (folder / "max_energy_range_uj").write_text("1000")
    with Watch() as watch:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("50")  # it began again at 0
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("300")
    assert watch.conditions.joules == pytest.approx((150 + 200) / 1e6)


def test_a_load_generator_makes_it_speak() -> None:
    """False alarms cannot fail this test, only a load of all cores that is not seen."""
    spin = "import time; end = time.time() + 20\nwhile time.time() < end: pass"
    load = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        with Watch() as watch:
            time.sleep(1.0)
        assert watch.conditions.others > 0.5
        assert watch.conditions.disturbed is not None
    finally:
        for process in load:
            process.kill()
            process.wait()


def busy(others: float) -> Conditions:
    return Conditions(1.0, 1.0, others, 0.0, 0, None, None, None, 2.0)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of the machine that others take in each timed method from now on; quiet when the list is at its end."""
    shares: list[float] = []

    def leave(self: Watch, *_: object) -> None:
        self.conditions = busy(shares.pop(0) if shares else 0.0)

    monkeypatch.setattr(Watch, "__exit__", leave)
    return shares


def bench(call: Any, *overrides: str) -> tuple[dict[str, Any], str]:
    options = ["target=tiny", "target.device=cpu", "tracker=none", "report=false", "drafter=ngram", "prompts.limit=10"]
    status, summary, out = call(experiments.bench.main, *options, "generation.max_new_tokens=4", *overrides)
    assert status == 0
    return summary, out


def test_a_disturbed_round_is_repeated_and_the_quieter_one_counts(call: Any, rounds: list[float]) -> None:
    rounds += [0.0, 0.5, 0.0, 0.3]  # the first round, then its repetition: baseline and drafter each
    summary, out = bench(call)
    quiet = summary["quiet"]
    assert (quiet["rounds"], quiet["disturbed"], quiet["repeated"]) == (TURNS, 1, 1)
    assert quiet["worst"] == "other processes used 30% of the machine's cores"
    assert f"DISTURBED in 1 of {TURNS} rounds: other processes used 30%" in out
    assert summary["divergence"]["identical"] == TURNS
    assert quiet["joules_per_token"]["speculative"] == pytest.approx(2.0 * TURNS / summary["new_tokens"])


def test_no_more_rounds_are_repeated_than_allowed(call: Any, rounds: list[float]) -> None:
    rounds += [0.5] * 100
    summary, out = bench(call)
    assert (summary["quiet"]["disturbed"], summary["quiet"]["repeated"]) == (TURNS, 1)
    assert "1 was repeated" in out


def test_a_quiet_run_says_so(call: Any, rounds: list[float]) -> None:
    summary, out = bench(call, "repeat_disturbed=0")
    assert summary["quiet"]["disturbed"] == 0
    assert f"quiet in all {TURNS} rounds" in out


def test_conditions_are_json() -> None:
    with Watch() as watch:
        sum(range(1000))
    found: dict[str, Any] = watch.conditions.as_dict()
    assert found["cpu_seconds"] >= 0
    assert found["switches"] >= 0
