"""The n-gram model's q, computed by hand, and that its children are drawn from it."""

from __future__ import annotations

import pytest
import torch

from drafters.ngram_lm import NgramLM
from specdec.decoding.protocols import DraftState, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.states import kept

TEXT = [1, 2, 3, 1, 2, 4, 1, 2]


def propose(drafter: NgramLM, target: TargetModel, sampling: SamplingParams, seed: int = 0) -> TokenTree:
    drafter.start(Session(target, [TEXT], sampling, 100))
    return drafter.propose(DraftState([TEXT], kept([[0]]), [100], Streams([[seed]], sampling, target.device)))


def test_q_interpolates_longer_and_shorter_contexts(tiny: TargetModel) -> None:
    tree = propose(NgramLM(2, 0.8, [1]), tiny, SamplingParams(temperature=1.0))
    assert tree.probs is not None
    # "1 2" and "2" were followed by 3 and by 4; of the 8 tokens three are 1, three are 2, one is 3, one is 4
    seen, alone = 0.8 + 0.16, 0.04
    expected = {1: alone * 3 / 8, 2: alone * 3 / 8, 3: seen / 2 + alone / 8, 4: seen / 2 + alone / 8}
    q = tree.probs[0, 0]
    assert q.nonzero().flatten().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(q[[1, 2, 3, 4]], torch.tensor([expected[i] for i in (1, 2, 3, 4)]))


def test_temperature_and_top_k_are_part_of_q(tiny: TargetModel) -> None:
    tree = propose(NgramLM(2, 0.8, [1]), tiny, SamplingParams(temperature=0.5, top_k=2))
    assert tree.probs is not None
    assert tree.probs[0, 0].nonzero().flatten().tolist() == [3, 4]


def test_children_are_drawn_from_q(tiny: TargetModel) -> None:
    drafter, sampling = NgramLM(2, 0.8, [1]), SamplingParams(temperature=1.0)
    drawn = [int(propose(drafter, tiny, sampling, seed).tokens[0, 1]) for seed in range(300)]
    # 3 or 4 with probability 0.97: fewer than 270 of 300 happens with probability below 1e-8
    assert sum(token in (3, 4) for token in drawn) >= 270
    # each of the two with probability 0.485: fewer than 75 happens with probability below 1e-16
    assert min(drawn.count(3), drawn.count(4)) >= 75


def test_without_replacement_siblings_differ_and_missing_ones_are_padding(tiny: TargetModel) -> None:
    drafter = NgramLM(2, 0.8, [6, 1], children="without_replacement")
    tree = propose(drafter, tiny, SamplingParams(temperature=1.0))
    tree.validate(tiny.vocab_size)
    assert not tree.replacement
    siblings = tree.tokens[0, 1:7].tolist()
    assert sorted(siblings) == [-1, -1, 1, 2, 3, 4]
    assert tree.tokens[0, 7:].tolist().count(-1) == 2


def test_at_temperature_zero_children_are_the_most_likely(tiny: TargetModel) -> None:
    tree = propose(NgramLM(2, 0.8, [2]), tiny, SamplingParams())
    assert tree.probs is None
    assert sorted(tree.tokens[0, 1:].tolist()) == [3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ngram": 0}, "drafter.max_ngram: expected an integer >= 1, got 0; raise it"),
        ({"weight": 1.0}, "drafter.weight: expected a number in (0, 1), got 1.0; try 0.8"),
        ({"widths": []}, "drafter.widths: expected a list of integers >= 1, got []; try [1,1,1,1]"),
        ({"children": "twins"}, "drafter.children: expected one of with_replacement, without_replacement, top_k, got"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        NgramLM(**{"max_ngram": 2, "weight": 0.8, "widths": [1], **options})
    assert message in str(error.value)
