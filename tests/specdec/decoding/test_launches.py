"""The budget of a step on CUDA: eager kernels outside captured forwards, and waits for the device, per drafter.

The goal is at most 30 kernels and one wait a step for every drafter. What is reached is held here, so that it only
falls; counts are of a tiny target, whose trees have the default sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drafters.draft_model.drafter import DraftModel
from drafters.eagle import Eagle
from drafters.early_exit import EarlyExit
from drafters.hydra_heads import Hydra
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from specdec.decoding.generate import speculative
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from tests.conftest import tiny_draft
from tests.specdec.model.runtime.test_graphs import Counted, counted
from tests.support.launches import Launches, counted_as_on_cuda
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

__all__ = ["counted"]

GOAL_KERNELS, GOAL_WAITS = 30, 1
DRAFTERS: dict[str, Callable[[TargetModel], Drafter]] = {
    "ngram": lambda _: Ngram(4, 1, 7, 1, 7),
    "medusa": lambda _: Medusa("fresh", tree=15),
    "hydra": lambda _: Hydra("fresh"),
    "draft model": lambda _: DraftModel(tiny_draft(), [1, 1, 1, 1]),
    "eagle": lambda _: Eagle("fresh"),
    "early exit": lambda _: EarlyExit(1),
}
# drafter: ((kernels, waits) a step at temperature 0, the same at temperature 1)
REACHED = {
    "ngram": ((67, 1), (107, 1)),
    "medusa": ((112, 1), (746, 1)),
    "hydra": ((147, 2), (341, 2)),  # whether to go on below the threshold: a look costs less than the levels
    "draft model": ((225, 2), (362, 2)),  # how far its cache reaches along the path is read from the device
    "eagle": ((401, 1), (901, 1)),
    "early exit": ((360, 6), (543, 6)),  # transformers looks at a mask in every `read_out`
}
PROMPTS = [[1, 2, 3, 1, 2, 3, 1], [9, 8, 9, 8, 9, 8, 9]]


def launched(name: str, temperature: float, patch: pytest.MonkeyPatch) -> Launches:
    """Count the steps of a second prompt; the first one captures."""
    target = load_tiny(device="cpu", kernel="dense")
    drafter, verifier = DRAFTERS[name](target), TreeAttention(target)
    options: Any = (Exact(), SamplingParams(temperature=temperature), StopRule(24), [[0]])
    for _ in range(2):
        speculative(PROMPTS[:1], drafter, verifier, *options)
    with patch.context() as forced, counted_as_on_cuda(forced) as found:
        speculative(PROMPTS[:1], drafter, verifier, *options)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_a_step_stays_within_its_budget(
    name: str, temperature: float, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = launched(name, temperature, monkeypatch)
    kernels, waits = REACHED[name][int(temperature)]
    assert found.steps > 1
    assert found.replays >= found.steps
    assert found.waits_per_step <= waits, found.waits
    assert found.kernels_per_step <= kernels, found.kernels
