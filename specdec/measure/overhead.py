"""Measure the time of a step outside the models' forwards: drafting without a model, accepting, committing, Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from specdec.decoding.decoder import Decoder
from specdec.decoding.protocols import Rows
from specdec.intervals import Interval, bootstrap
from specdec.model.halves import Halves
from specdec.model.target import TargetModel

FORWARDS = ((TargetModel, "forward"), (Halves, "lower"), (Halves, "upper"), (Halves, "read_out"))  # none calls another
Span = tuple[float, float]  # when something began and ended, by time.perf_counter


def share_outside_forwards(prompts: Rows, decoder: Decoder) -> tuple[float, Interval | None]:
    """Return the share of the steps' time outside the forwards of target and draft model.

    With its 95 % interval over prompts. Prompts run one at a time; prefill is not counted.
    """
    outside, whole = [], []
    for number, prompt in enumerate(prompts):
        with timed_forwards() as spans:
            begun = time.perf_counter()
            done = decoder.speculative([prompt], [[number]])
        first_token = begun + done.prefill_seconds
        whole.append(done.seconds - done.prefill_seconds)
        outside.append(whole[-1] - sum(end - start for start, end in spans if start >= first_token))
    return bootstrap([outside, whole], lambda sums: sums[0] / sums[1])


@contextmanager
def timed_forwards() -> Iterator[list[Span]]:
    """Yield a list that takes (begin, end) of each forward of any `TargetModel` in the body.

    The device is synchronised before and after each forward.
    """
    spans: list[Span] = []
    before = [(kind, name, getattr(kind, name)) for kind, name in FORWARDS]

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: TargetModel | Halves, *args: Any, **options: Any) -> Any:
            begun = _now(self.device)
            out = forward(self, *args, **options)
            spans.append((begun, _now(self.device)))
            return out

        return call

    for kind, name, forward in before:
        setattr(kind, name, timed(forward))
    try:
        yield spans
    finally:
        for kind, name, forward in before:
            setattr(kind, name, forward)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
