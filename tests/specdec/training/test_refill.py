"""Every refilled row's text and hidden states are what it would have alone."""

from __future__ import annotations

import pytest
import torch

from specdec.decoding.generate import autoregressive
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.training.text.refill import Finished, Refill, Request

WORDS = ["hello world, hello wor", "abcabcabc abcabc", "x", "to be or not to be, that is", "the", "aaaa", "one two"]
GREEDY, WARM, PENALTY = SamplingParams(), SamplingParams(0.8, 40), SamplingParams(0.7, repetition_penalty=1.2)
TOLERANCE = 2e-3  # 16-bit hidden states of order one


def requests(target: TargetModel, opening: str) -> list[Request]:
    assert target.tokenizer is not None
    samplings = [GREEDY, WARM, PENALTY]
    ids = [target.tokenizer.encode((opening if i % 3 else "") + words) for i, words in enumerate(WORDS)]
    return [Request(prompt, samplings[i % 3], [7, i], i) for i, prompt in enumerate(ids)]


def refilled(
    target: TargetModel, stop: StopRule, todo: list[Request], opening: str, together: int = 1
) -> dict[object, Finished]:
    assert target.tokenizer is not None
    done: dict[object, Finished] = {}
    longest = max(len(request.prompt) for request in todo)
    shared = target.tokenizer.encode(opening) if opening else []
    refill = Refill(target, stop, 3, longest, torch.float16, shared, together)
    refill.run(todo, lambda text: done.setdefault(text.request.tag, text) and None)
    return done


@pytest.mark.parametrize("together", [1, 2, 3])
def test_texts_equal_those_of_rows_alone(tiny: TargetModel, together: int) -> None:
    opening = "system: be brief. user: "
    todo = requests(tiny, opening)
    # tokens of the tiny model's texts, so that texts end after few tokens, after many and never
    eos = frozenset([autoregressive([todo[0].prompt], tiny, GREEDY, StopRule(9), [[0]]).texts[0][-1]])
    stop = StopRule(24, eos)
    done = refilled(tiny, stop, todo, opening, together)
    lengths = set()
    for request in todo:
        alone = autoregressive([request.prompt], tiny, request.sampling, stop, [request.seed]).texts[0]
        assert done[request.tag].answer == alone, request.tag
        lengths.add(len(alone))
    assert len(lengths) > 1, "all texts have one length: refilling was not put to the test"


@pytest.mark.parametrize("together", [1, 2])
def test_hidden_states_equal_a_forward_over_the_finished_text(tiny: TargetModel, together: int) -> None:
    todo = requests(tiny, "system: ")
    for text in refilled(tiny, StopRule(8), todo, "system: ", together).values():
        ids = text.request.prompt + text.answer
        with torch.inference_mode(), tiny.stock() as model:
            expected = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert text.hidden is not None
        torch.testing.assert_close(text.hidden.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_what_finished_returns_goes_first(tiny: TargetModel) -> None:
    todo, order = requests(tiny, ""), []

    def finished(text: Finished) -> Request | None:
        order.append(text.request.tag)
        if text.request.tag == 0:
            return Request(text.request.prompt + text.answer, GREEDY, [0], "next turn")
        return None

    Refill(tiny, StopRule(4), 1, 64).run(todo, finished)
    assert order[:2] == [0, "next turn"]
    assert set(order) == {*range(len(todo)), "next turn"}
