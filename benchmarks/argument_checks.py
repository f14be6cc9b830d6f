"""Time the argument checks of the kernels, on the embedded model's shapes.

    OMP_NUM_THREADS=1 python -m benchmarks.argument_checks

Calls with and without checks alternate in one process, so that both run under the same conditions. The weights of a
single layer stay in the CPU cache here, so products are faster and the share of the checks is larger than in a model.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from specdec.intervals import median_interval
from specdec.model.runtime import vocabulary
from specdec.model.runtime.few_rows import FewRowLinear
from specdec.model.runtime.packed import PackedLinear
from specdec.model.runtime.storage import rounded

LAYERS, TURNS, CALLS = 30, 200, 20
# (inputs, outputs) of the products in a layer of SmolLM2-135M, with the number of each
SHAPES = {(576, 576): 2, (576, 192): 2, (576, 1536): 2, (1536, 576): 1}
VOCABULARY = 49_152
MADE: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "fp32": FewRowLinear,
    "int8": lambda linear: PackedLinear(rounded(linear.weight, "int8"), linear.bias),
}


def main() -> None:
    torch.set_num_threads(1)
    sys.stdout.write(f"microseconds per call, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for form, made in MADE.items():
        for rows in (1, 8):
            added = whole = 0.0
            for (inputs, outputs), count in SHAPES.items():
                module = made(nn.Linear(inputs, outputs, bias=False).requires_grad_(False))
                name = f"{form}, {rows} x {inputs} -> {outputs}"
                unchecked = patch.object(type(module), "_takes", lambda *_: True)
                more, call = in_turns(name, module, torch.randn(1, rows, inputs), unchecked)
                added, whole = added + LAYERS * count * more, whole + LAYERS * count * call
            sys.stdout.write(
                f"  {LAYERS} layers of them: {added / 1e3:.2f} ms of {whole / 1e3:.1f} ms, {added / whole:.1%}\n"
            )
    kernels = vocabulary._kernels()
    unchecked = patch.object(vocabulary, "_library", lambda *_, **__: kernels)
    in_turns(f"argmaxes, 8 x {VOCABULARY}", vocabulary.argmaxes, torch.rand(8, VOCABULARY), unchecked)


@torch.inference_mode()
def in_turns(name: str, function: Callable[[Any], Any], x: torch.Tensor, unchecked: Any) -> tuple[float, float]:
    """Print and return the microseconds that the checks add to a call, and those of the whole call (medians).

    Args:
        name: name of the row.
        function: the function to call.
        x: its argument.
        unchecked: a context in which the function checks nothing.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    function(x)
    for turn in range(TURNS):
        for checks in (True, False) if turn % 2 else (False, True):
            if checks:
                seconds[True].append(_timed(function, x))
            else:
                with unchecked:
                    seconds[False].append(_timed(function, x))
    added, interval = median_interval([1e6 * (a - b) for a, b in zip(*seconds.values(), strict=True)])
    call, _ = median_interval([1e6 * s for s in seconds[True]])
    low, high = interval or (added, added)
    sys.stdout.write(f"{name:28} {call:8.1f}, of which checks {added:5.2f} [{low:.2f}, {high:.2f}]\n")
    return added, call


def _timed(function: Callable[[Any], Any], x: torch.Tensor) -> float:
    begun = time.perf_counter()
    for _ in range(CALLS):
        function(x)
    return (time.perf_counter() - begun) / CALLS


if __name__ == "__main__":
    main()
