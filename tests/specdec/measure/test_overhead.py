"""Time outside the forwards, by a clock that only goes on where the test says so."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from drafters.draft_model.drafter import DraftModel
from drafters.ngram import Ngram
from specdec.decoding.decoder import Decoder
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.measure.overhead import share_outside_forwards, timed_forwards
from specdec.model.target import TargetModel
from tests.conftest import tiny_draft
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

PROMPTS = [[5, 6, 7, 5, 6, 7, 5], [9, 9, 9]]
FORWARD, ACCEPT = 1.0, 3.0  # seconds


def test_forwards_of_every_model_are_timed_and_only_while_open(tiny: TargetModel) -> None:
    forward, draft = TargetModel.forward, tiny_draft()
    with timed_forwards() as spans:
        for model in (tiny, draft):
            model.prefill(model.new_cache(1, 4), [[1, 2, 3]])
    assert len(spans) == 2
    assert spans[0][0] < spans[0][1] <= spans[1][0] < spans[1][1]
    assert TargetModel.forward is forward
    with pytest.raises(RuntimeError, match="a bug"), timed_forwards():
        raise RuntimeError("a bug")
    assert TargetModel.forward is forward


@pytest.mark.parametrize("draft", [False, True], ids=["ngram", "draft_model"])
def test_the_share_is_of_the_steps_and_reading_the_prompt_is_none(
    tiny: TargetModel, monkeypatch: pytest.MonkeyPatch, draft: bool
) -> None:
    drafter = DraftModel(tiny_draft(), [1, 1]) if draft else Ngram(3, 1, 3, 2, 3)
    now, calls = 0.0, {"forward": 0, "accept": 0}

    def takes(seconds: float, name: str, function: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            nonlocal now
            now += seconds
            calls[name] += 1
            return function(*args, **options)

        return call

    monkeypatch.setattr(TargetModel, "forward", takes(FORWARD, "forward", TargetModel.forward))
    monkeypatch.setattr(Exact, "accept", takes(ACCEPT, "accept", Exact.accept))
    with monkeypatch.context() as clock:
        clock.setattr(time, "perf_counter", lambda: now)
        decoder = Decoder(drafter, TreeAttention(tiny), Exact(), SamplingParams(temperature=1.0), StopRule(6))
        share, interval = share_outside_forwards(PROMPTS, decoder)
    outside, inside = ACCEPT * calls["accept"], FORWARD * (calls["forward"] - len(PROMPTS))
    assert calls["accept"] > len(PROMPTS)
    assert share == pytest.approx(outside / (outside + inside))
    assert interval is not None
