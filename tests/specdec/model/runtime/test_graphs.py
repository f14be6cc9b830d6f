"""Forwards as captured graphs: when they are captured here, that they can be in `untyped_graphs.py`, which runs in a
process without the run-time type checks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from torch import Tensor

from drafters.eagle.head import fresh_head
from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import fresh_adapter
from drafters.hydra_heads import Hydra
from drafters.hydra_heads.heads import HydraHeads
from drafters.medusa.heads import fresh_heads
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.load import load_tiny
from specdec.model.runtime import graphs
from specdec.model.runtime.graphs import CapturedForwards
from specdec.model.target import TargetModel
from tests.specdec.model.runtime import untyped_graphs
from tests.support.configs import composed, group
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

CACHED = {  # drafters with layers of their own that no file of conf/drafter gives the tiny target
    "early exit through layers": lambda target: EarlyExit(1, fresh_adapter(target, 1, layers=[1])),
    "hydra heads with a prefix": lambda target: Hydra(
        HydraHeads.of(fresh_heads(target, 3).to(target.dtype), fresh_head(target)), depth=3
    ),
}


GREEDY, STOP = SamplingParams(), StopRule(16)
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3, 9, 3, 9, 3, 9, 3, 1]]


class Counted:
    """A stand-in for captures on CUDA: counts them, and those among them that a measured time includes."""

    def __init__(self) -> None:
        self.made = self.timed = 0

    def __call__(self, forward: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], Any], tuple[Tensor, ...]]:
        self.made, self.timed = self.made + 1, self.timed + (graphs._postponed.get() is not None)
        for _ in range(3):
            forward()  # as `cuda_graph` warms up
        outputs = forward()

        def replay() -> None:
            for static, tensor in zip(outputs, forward(), strict=True):
                static.copy_(tensor)

        return replay, outputs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Every model that is loaded captures its forwards, as on CUDA."""
    counted, init = Counted(), TargetModel.__init__

    def with_graphs(self: TargetModel, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "runtime": "stock"})
        self.graphs = CapturedForwards(self._run_modules, counted)

    monkeypatch.setattr(TargetModel, "__init__", with_graphs)
    return counted


def made_for(name: str, target: TargetModel) -> Drafter | None:
    if name in CACHED:
        return CACHED[name](target)
    if name == "autoregressive":
        return None
    drafter: Drafter = instantiate(composed(f"drafter={name}").drafter, _convert_="all")
    return drafter


@pytest.mark.parametrize("name", ["autoregressive", *group("drafter"), *CACHED])
def test_a_second_prompt_captures_nothing_and_owes_the_first_one_nothing(counted: Counted, name: str) -> None:
    def generated(prompts: Sequence[list[int]]) -> tuple[list[list[list[int]]], list[int]]:
        """Texts of the prompts, one after the other, and how many captures each made."""
        target, texts, made = load_tiny(device="cpu"), [], []
        verifier, drafter = TreeAttention(target), made_for(name, target)
        for prompt in prompts:
            before = counted.made
            if drafter is None:
                done = autoregressive([prompt], target, GREEDY, STOP, [[0]])
            else:
                done = speculative([prompt], drafter, verifier, Exact(), GREEDY, STOP, [[0]])
            texts.append(done.texts)
            made.append(counted.made - before)
        return texts, made

    texts, made = generated([PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]])
    assert made[0] > 0
    assert made[2:] == [0, 0]  # a shape that only the second prompt has is captured after it
    assert counted.timed == 0
    assert texts == [*(generated([prompt])[0][0] for prompt in PROMPTS)] * 2


def test_forwards_can_be_captured_and_replayed() -> None:
    file = Path(untyped_graphs.__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", str(file)],
        cwd=file.parents[1],
        env={**os.environ, "UNTYPED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
