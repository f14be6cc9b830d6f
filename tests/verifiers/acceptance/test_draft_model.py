"""The draft model's children go with the rules that are exact for them, padding included."""

from __future__ import annotations

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from specdec.decoding.generate import speculative
from specdec.decoding.protocols import AcceptanceRule, DraftState, Session
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree
from tests.conftest import tiny_draft
from tests.support.states import kept
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.without_replacement import WithoutReplacement
from verifiers.tree_attention import TreeAttention


def first_tree(tiny: TargetModel, drafter: DraftModel, sampling: SamplingParams) -> TokenTree:
    rows = [[5, 6, 7], [8, 9]]
    drafter.start(Session(tiny, rows, sampling, capacity=20))
    streams = Streams([[0, 0], [0, 1]], sampling, torch.device("cpu"))
    return drafter.propose(DraftState(rows, kept([[PAD], [PAD]]), [9, 9], streams))


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_fewer_tokens_than_children_leave_padding(tiny: TargetModel, penalty: float) -> None:
    """top_k = 2 leaves q two tokens: the third child of every node is padding, and so is what is below it."""
    sampling = SamplingParams(temperature=1.0, top_k=2, repetition_penalty=penalty)
    tree = first_tree(tiny, DraftModel(tiny_draft(), [3, 2, 1], "without_replacement"), sampling)
    tree.validate(tree.probs.shape[-1])
    assert not tree.replacement
    padding = torch.tensor([False, False, False, True, *[False] * 4, True, True, *[False] * 4, True, True])
    assert (tree.tokens == PAD).tolist() == [padding.tolist()] * 2
    for first in (1, 4, 6):
        assert (tree.tokens[:, first] != tree.tokens[:, first + 1]).all()


@pytest.mark.parametrize("rule", [WithoutReplacement(), Traversal()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_padding_goes_through_the_loop(tiny: TargetModel, rule: AcceptanceRule, penalty: float) -> None:
    sampling = SamplingParams(temperature=1.0, top_k=2, repetition_penalty=penalty)
    drafter = DraftModel(tiny_draft(), [3, 2], "without_replacement")
    stop = StopRule(12, tiny.eos)
    prompts = [[5, 6, 7], [8, 9]]
    together = speculative(prompts, drafter, TreeAttention(tiny), rule, sampling, stop, [[0, 0], [0, 1]])
    for row, prompt in enumerate(prompts):
        alone = speculative([prompt], drafter, TreeAttention(tiny), rule, sampling, stop, [[0, row]])
        assert alone.texts[0] == together.texts[row]


def test_an_only_child_has_no_siblings(tiny: TargetModel) -> None:
    """A chain is drawn with and without replacement alike, so every rule may judge it."""
    chain = DraftModel(tiny_draft(), [1, 1], "without_replacement")
    assert first_tree(tiny, chain, SamplingParams(temperature=1.0)).replacement


def test_top_k_children_come_without_q(tiny: TargetModel) -> None:
    tree = first_tree(tiny, DraftModel(tiny_draft(), [2], "top_k"), SamplingParams(temperature=1.0))
    assert tree.probs is None
    assert Exact().accept(tree, torch.full((2, 3, 512), 1 / 512), _Never()).path.shape == (2, 3)


class _Never:
    def bernoulli(self, probs: torch.Tensor, slot: int) -> torch.Tensor:
        return torch.zeros(len(probs), dtype=torch.bool)

    def categorical(self, probs: torch.Tensor, slot: int) -> torch.Tensor:
        return torch.zeros(len(probs), dtype=torch.long)


def test_unknown_way_of_choosing_children() -> None:
    with pytest.raises(InputError) as error:
        DraftModel("tiny", [1], "sampled")
    assert str(error.value) == (
        "drafter.children: expected one of with_replacement, without_replacement, top_k, got 'sampled'; choose one"
    )
