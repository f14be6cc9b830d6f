"""The clock assigns time to the phases of a step."""

from __future__ import annotations

import torch

from specdec.decoding.clock import PhaseClock


def test_the_clock_adds_laps_to_phases() -> None:
    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    clock.lap("draft")
    clock.lap("verify")
    first = clock.take()
    clock.lap("draft")
    assert set(first) == {"draft", "verify"}
    assert set(clock.take()) == {"draft"}
    assert all(ms >= 0 for ms in first.values())
