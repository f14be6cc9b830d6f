"""How often drafted nodes are right: counted as it should be, and forgotten as fast as one asks."""

from __future__ import annotations

import pytest
import torch

from drafters.shared.estimates import EDGES, PRIOR, SILENT, Estimates, Pending, Proposal
from specdec.trees.tree import PAD, TokenTree


def test_estimates_are_counts_that_begin_with_what_the_drafter_says() -> None:
    assert len(PRIOR) == len(EDGES) + 1
    assert all(low < prior < high for low, prior, high in zip(EDGES, PRIOR[1:], (*EDGES[1:], 1), strict=True))
    proposal = Proposal([1, 7, 8, 9, PAD], [-1, 0, 0, 1, PAD], [1.0, 0.4, 0.4, 0.99, 0.0])
    assert proposal.shape.depth.tolist() == [0, 1, 1, 2, 0]
    assert proposal.shape.children == [[1, 2], [3], [], [], []]
    estimates = Estimates()
    first, second, deep = proposal.cells[1:4]
    assert estimates.rates()[first] == estimates.rates()[second] == pytest.approx(0.42)
    for _ in range(2000):  # 8 always follows: 7 is wrong, and what lies below it is never known
        estimates.learn(proposal, [8, 4])
    rates = estimates.rates()
    assert rates[first] < 0.05
    assert rates[second] > 0.95
    assert rates[deep] == pytest.approx(0.98)
    assert proposal.gains(rates).tolist() == [0, rates[first], rates[second], rates[first] * rates[deep], 0]


def test_late_siblings_share_a_cell() -> None:
    wide = Proposal([1, *range(10, 20)], [-1, *[0] * 10], [1.0] + [-1.0] * 10)
    estimates = Estimates()
    for _ in range(3000):
        estimates.learn(wide, [19])
    first, *_, last = wide.cells[1:]
    assert estimates.rates()[last] == pytest.approx(1 / 7, abs=0.02)  # one of ranks 3 to 9
    assert estimates.rates()[first] < 0.02


def test_a_short_memory_turns_sooner() -> None:
    """After a hundred times right, how often wrong until that is likelier."""
    chain, turned = Proposal([1, 7], [-1, 0], [1.0, SILENT]), []
    for memory in (0.9, 0.995):
        estimates = Estimates(memory)
        for _ in range(100):
            estimates.learn(chain, [7])
        assert estimates.rates()[chain.cells[1]] > 0.9
        turned.append(0)
        while estimates.rates()[chain.cells[1]] > 0.5:
            estimates.learn(chain, [8])
            turned[-1] += 1
    assert turned[0] <= 10
    assert turned[1] >= 40


def test_proposals_wait_until_their_text_is_written() -> None:
    chain, silent = Proposal([1, 7, 8], [-1, 0, 1], [1.0, 0.4, 0.4]), Proposal([1], [-1], [1.0])
    pending, estimates, others = Pending(), Estimates(), Estimates()
    first = estimates.rates()
    pending.add(chain, 2)
    pending.add(silent, 2)  # nothing to judge
    pending.judge([5, 1, 7], estimates)
    assert estimates.rates() is first
    pending.judge([5, 1, 7, 8, 9], estimates)
    others.learn(chain, [7, 8])
    assert estimates.rates().tolist() == others.rates().tolist()
    pending.judge([5, 1, 7, 8, 9], estimates)  # once
    assert estimates.rates().tolist() == others.rates().tolist()
    pending.add(chain, 5)
    pending.judge([5, 1, 7, 8, 9], estimates, over=True)  # forgets a little, and learns nothing: no token followed
    assert estimates.rates().tolist() != others.rates().tolist()
    others.learn(chain, [])
    assert estimates.rates().tolist() == others.rates().tolist()


def test_each_row_of_a_tree_is_a_proposal() -> None:
    tokens, parents = torch.tensor([[1, 7, 8], [2, 9, PAD]]), torch.tensor([[-1, 0, 0], [-1, 0, PAD]])
    first, second = Proposal.rows(TokenTree(tokens, parents, confidence=torch.full((2, 3), 0.5)))
    assert (first.tokens, first.parents, first.confidence) == ([1, 7, 8], [-1, 0, 0], [0.5] * 3)
    assert second.shape.depth.tolist() == [0, 1, 0]
    assert Proposal.rows(TokenTree(tokens, parents))[1].confidence == [SILENT] * 3
