"""Measure the phases of steps without waiting for the device."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class PhaseClock:
    """Stopwatch for the phases of steps.

    On CUDA it records events and reads them one step later, so that measuring never waits for the device. The dict
    that `take` returns is then filled in later: by the next `take`, or by `finish`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._open: list[tuple[list[tuple[str, Any]], dict[str, float]]] = []

    def start(self) -> None:
        self._marks = [("", self._now())]

    def lap(self, phase: str) -> None:
        """Assign the time since the last mark to `phase`."""
        self._marks.append((phase, self._now()))

    def take(self) -> dict[str, float]:
        """Return milliseconds by phase since the last `start` or `take`."""
        step: dict[str, float] = {}
        self._resolve()
        self._open.append((self._marks, step))
        self._marks = self._marks[-1:]
        if not self._cuda:
            self._resolve()
        return step

    def finish(self) -> None:
        """Wait for the device and fill in the dicts that are still empty."""
        if self._cuda:
            torch.cuda.synchronize()
        self._resolve()

    def _resolve(self) -> None:
        for marks, step in self._open:
            for (_, before), (phase, after) in pairwise(marks):
                ms = before.elapsed_time(after) if self._cuda else (after - before) * 1e3
                step[phase] = step.get(phase, 0.0) + ms
        self._open = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
