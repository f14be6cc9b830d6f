"""Trees that follow the drafter's confidence, against every path there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from drafters.draft_model.drafter import DraftModel
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.grow_confident import DynamicTree
from specdec.decoding.grow_fixed import already_read
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree
from tests.conftest import tiny_draft
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

VOCAB, DEPTH = 4, 3
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]


def q_after(row: int, path: tuple[int, ...]) -> Tensor:
    """Some distribution, another after every text."""
    seed = 1 + row
    for token in path:
        seed = 7 * seed + token + 1
    return torch.rand(VOCAB, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def path_of(tree: TokenTree, row: int, node: int) -> tuple[int, ...]:
    """Tokens from below the root to the node."""
    path: list[int] = []
    while node > 0:
        path.append(int(tree.tokens[row, node]))
        node = int(tree.parents[row, node])
    return tuple(reversed(path))


def next_q(known: TokenTree, level: int) -> Tensor:
    places = range(known.nodes - level, known.nodes)
    return torch.stack([torch.stack([q_after(r, path_of(known, r, i)) for i in places]) for r in range(known.batch)])


def worth(row: int, path: tuple[int, ...]) -> float:
    value = 1.0
    for depth, token in enumerate(path):
        value *= float(q_after(row, path[:depth])[token])
    return value


@pytest.mark.parametrize("nodes", [1, 3, 8, 20, 84, 100])
def test_with_a_beam_as_wide_as_it_gets_the_best_paths_are_proposed(nodes: int) -> None:
    tree, read = DynamicTree(DEPTH, VOCAB**DEPTH, nodes).grow(torch.tensor([0, 1]), next_q, [9, 9])
    tree.validate(VOCAB)
    paths = [path for depth in range(1, DEPTH + 1) for path in product(range(VOCAB), repeat=depth)]
    for row in range(2):
        best = sorted(paths, key=lambda path: -worth(row, path))[:nodes]
        ours = [path_of(tree, row, node) for node in range(1, tree.nodes) if tree.tokens[row, node] != PAD]
        assert sorted(ours) == sorted(best)
        seen = read[row][read[row] >= 0].tolist()
        assert seen == sorted(seen)


@pytest.mark.parametrize("keep_read", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3])
def test_a_row_gets_the_tree_it_would_get_alone(threshold: float, keep_read: bool) -> None:
    """Whatever room the others have. Parents of proposed nodes were read, and no node is deeper than its row may go."""
    shape, room = DynamicTree(4, 3, 7, threshold), [9, 2, 1, 4, 0]
    together, read = shape.grow(torch.zeros(5, dtype=torch.long), next_q, room, keep_read)
    together.validate(VOCAB)

    def paths(tree: TokenTree, row: int) -> list[tuple[int, ...]]:
        return [path_of(tree, row, node) for node in range(1, tree.nodes) if tree.tokens[row, node] != PAD]

    for row, tokens in enumerate(room):

        def of_row(known: TokenTree, level: int, row: int = row) -> Tensor:
            places = range(known.nodes - level, known.nodes)
            return torch.stack([q_after(row, path_of(known, 0, i)) for i in places])[None]

        alone, _ = shape.grow(torch.zeros(1, dtype=torch.long), of_row, [tokens], keep_read)
        assert paths(together, row) == paths(alone, 0)
        assert max((len(path) for path in paths(together, row)), default=0) <= max(tokens - 1, 0)
        for node in range(1, together.nodes):
            if together.tokens[row, node] != PAD:
                parent = together.parents[row, node]
                assert read[row, parent] >= 0
                assert not parent or worth(row, path_of(together, row, int(parent))) >= threshold


def test_places_end_at_the_first_node_that_was_not_read() -> None:
    read = torch.tensor([[0, 1, 2, -1, -1], [0, 2, 1, -1, -1], [0, 1, -1, -1, -1]])
    path = torch.tensor([[0, 2, 3], [0, 1, 7], [0, PAD, PAD]])
    places, counts = already_read(read, path)
    assert places.tolist() == [[0, 2, PAD], [0, 2, PAD], [0, PAD, PAD]]
    assert counts == [2, 2, 1]


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, top_k=40, repetition_penalty=1.1)]
)
def test_a_draft_model_with_a_budget(tiny: TargetModel, sampling: SamplingParams) -> None:
    """Greedy text is the target's; a row's text is what it would be alone; and it takes fewer steps than a chain."""
    parts = (TreeAttention(tiny), Exact(), sampling, StopRule(20))
    drafter = DraftModel(tiny_draft(), nodes=9, depth=4, beam=3, threshold=0.02)
    done = speculative(PROMPTS, drafter, *parts, SEEDS)
    alone = [speculative([p], drafter, *parts, [seed]).texts[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert done.texts == alone
    if sampling.greedy:
        assert done.texts == autoregressive(PROMPTS, tiny, sampling, StopRule(20), SEEDS).texts
        chain = speculative(PROMPTS, DraftModel(tiny_draft(), [1] * 4), *parts, SEEDS)
        assert len(done.steps) < len(chain.steps)
    assert all(step.nodes <= 9 for step in done.steps)
    assert len({step.accepted for step in done.steps}) > 1


def test_a_perfect_draft_leaves_no_hole(tiny: TargetModel) -> None:
    """All levels but the last were read; the rest is read before the next tree, or acceptance would fall."""
    parts = (TreeAttention(tiny), Exact(), SamplingParams(), StopRule(24, frozenset()))
    done = speculative(PROMPTS, DraftModel(tiny, nodes=3, depth=3, beam=1), *parts, SEEDS)
    assert StepMetrics.of(done.steps).acceptance_at_depth == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "drafter.nodes: expected an integer >= 1, got 0; raise it"),
        ({"nodes": 4, "beam": 0}, "drafter.beam: expected an integer >= 1, got 0; raise it"),
        ({"nodes": 4, "threshold": 1.5}, "drafter.threshold: expected a probability in [0, 1), got 1.5; try 0.1"),
    ],
)
def test_bad_options(tiny: TargetModel, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        DraftModel(tiny, **options)
    assert str(error.value) == message
