"""Several drafters in one tree: merged as they should be, shared out as they deserve, and exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from drafters.draft_model import DraftModel
from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import fresh_adapter
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from drafters.none import NoDrafter
from drafters.union import Union
from specdec.errors import InputError
from specdec.generate import autoregressive, speculative
from specdec.metrics import StepMetrics
from specdec.models import load_tiny
from specdec.protocols import Drafter, DraftState, ExitingDrafter, Session, Verdict
from specdec.sampling import SamplingParams, Streams
from specdec.stopping import StopRule
from specdec.target import TargetModel
from specdec.tree import PAD, TokenTree
from tests.conftest import tiny_draft
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, top_k=40, repetition_penalty=1.1)
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]


class Fixed:
    """Proposes the same paths below every root."""

    def __init__(self, *paths: Sequence[int]) -> None:
        self.paths, self.told = paths, []

    @property
    def max_nodes(self) -> int:
        return 1 + sum(map(len, self.paths))

    def start(self, session: Session) -> None:
        self.told = []

    def propose(self, state: DraftState) -> TokenTree:
        self.told.append(state.verdict.path.tolist())
        tokens, parents = [state.rows[0][-1]], [-1]
        for path in self.paths:
            for depth, token in enumerate(path):
                parents.append(len(tokens) - 1 if depth else 0)
                tokens.append(token)
        return TokenTree.from_rows([tokens] * len(state.rows), [parents] * len(state.rows))


def step(union: Union, tiny: TargetModel, path: list[list[int]], sampling: SamplingParams = GREEDY) -> TokenTree:
    rows = [[1, 2, 3]] * len(path)
    verdict = Verdict(torch.tensor(path), torch.zeros(len(path), dtype=torch.long))
    streams = Streams([[0, r] for r in range(len(path))], sampling, torch.device("cpu"))
    return union.propose(DraftState(rows, verdict, [9] * len(path), streams))


def begun(tiny: TargetModel, **drafters: Drafter) -> Union:
    union = Union(drafters)
    union.start(Session(tiny, [[1, 2, 3]], GREEDY, 40))
    return union


def test_shared_prefixes_are_merged_and_each_drafter_hears_of_its_own_nodes(tiny: TargetModel) -> None:
    """a: 7-8-9 and 4; b: 4-5 and 7-8-6. Merged: 7 8 9 4 | 5 6."""
    a, b = Fixed([7, 8, 9], [4]), Fixed([4, 5], [7, 8, 6])
    union = begun(tiny, a=a, b=b)
    tree = step(union, tiny, [[0, 1, 2]])
    tree.validate(tiny.vocab_size)
    assert tree.tokens.tolist() == [[3, 7, 8, 9, 4, 5, 6]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 0, 4, 2]]
    step(union, tiny, [[0, 1, 2, 6]])  # 7 8 6: b's nodes 3, 4, 5; 6 is none of a's
    assert a.told == [[[0, 1, 2]], [[0, 1, 2, 1 << 30]]]
    assert b.told == [[[0, 1, 2]], [[0, 3, 4, 5]]]
    step(union, tiny, [[0, 4, PAD, PAD]])
    assert (a.told[-1], b.told[-1]) == ([[0, 4, PAD, PAD]], [[0, 1, PAD, PAD]])


def test_the_budget_follows_acceptance(tiny: TargetModel) -> None:
    good, bad = Fixed([1, 1, 1, 1, 1, 1]), Fixed([2, 2, 2, 2, 2, 2])
    union = Union({"bad": bad, "good": good}, nodes=6)
    union.start(Session(tiny, [[1, 2, 3]], GREEDY, 40))
    assert union.max_nodes == 7

    def shares(path: list[int]) -> tuple[int, int]:
        tokens = step(union, tiny, [path]).tokens[0].tolist()
        return tokens[1:].count(2), tokens[1:].count(1)

    assert shares([0, 1, 2]) == (3, 3)
    for _ in range(20):
        tokens = step(union, tiny, [[0]]).tokens[0].tolist()
        of_good = [0] + [node for node, token in enumerate(tokens) if node and token == 1]
        last = shares(of_good)
    assert last[1] > last[0] >= 1
    assert sum(last) == 6


def makers() -> dict[str, Callable[[TargetModel], Drafter]]:
    return {
        "ngram and medusa": lambda t: Union({"a": Ngram(3, 1, 5, 2, 7), "b": Medusa("fresh", 8)}, nodes=9),
        "draft model and ngram": lambda t: Union(
            {"a": DraftModel(tiny_draft(), children="top_k"), "b": Ngram(3, 1, 5, 2, 7)}
        ),
        "early exit, ngram, draft model": lambda t: Union(
            {
                "a": Ngram(3, 1, 5, 2, 7),
                "b": EarlyExit(1, fresh_adapter(t, 1, layers=[0]), depth=3, beam=2, nodes=6, threshold=0.01),
                "c": DraftModel(tiny_draft(), nodes=5, depth=3, beam=2),
            },
            nodes=12,
        ),
    }


@pytest.mark.parametrize("name", makers())
def test_text_is_the_targets_own_and_a_rows_what_it_would_be_alone(tiny: TargetModel, name: str) -> None:
    union = makers()[name](tiny)
    assert isinstance(union, ExitingDrafter)
    assert union.exit_layer == (1 if "early" in name else None)
    for sampling in (GREEDY, SAMPLED):
        parts = (TreeAttention(tiny), Exact(), sampling, StopRule(24, tiny.eos))
        done = speculative(PROMPTS, union, *parts, SEEDS)
        alone = [speculative([p], union, *parts, [seed]).texts[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
        if sampling.greedy or union.exit_layer is None:  # see EarlyExit
            assert done.texts == alone
        if sampling.greedy:
            assert done.texts == autoregressive(PROMPTS, tiny, sampling, StopRule(24, tiny.eos), SEEDS).texts
        assert 0 < (StepMetrics.of(done.steps).acceptance_rate or 0) < 1
        assert max(record.nodes for record in done.steps) < union.max_nodes


def test_an_adapter_in_a_union_misses_nothing() -> None:
    """Nodes that only the n-gram drafter proposed are read by the adapter afterwards: one that is the rest of the
    target goes on being right."""
    tiny = load_tiny(device="cpu", layers=3)
    exits = EarlyExit(1, fresh_adapter(tiny, 1, layers=[1, 2]), depth=2, nodes=2)
    union = Union({"exit": exits, "ngram": Ngram(3, 1, 6, 2, 12)})
    parts = (TreeAttention(tiny), Exact(), GREEDY, StopRule(40, frozenset()))
    done = speculative(PROMPTS, union, *parts, SEEDS)
    assert StepMetrics.of(done.steps).acceptance_at_depth[:2] == [1.0, 1.0]
    assert any(record.accepted > 2 for record in done.steps)  # what the adapter did not propose


def test_bad_input(tiny: TargetModel) -> None:
    cases: list[tuple[dict, str]] = [
        ({"drafters": {"a": NoDrafter()}}, "drafter.drafters: expected two drafters or more, got 1; add one"),
        (
            {"drafters": {"a": EarlyExit(1), "b": EarlyExit(2)}},
            "drafter.drafters: expected at most one drafter with an exit layer, got two; remove one",
        ),
        (
            {"drafters": {"a": NoDrafter(), "b": NoDrafter()}, "nodes": 1},
            "drafter.nodes: expected at least 2, one for each drafter, got 1; raise it, or use null for all",
        ),
    ]
    for options, message in cases:
        with pytest.raises(InputError) as error:
            Union(**options)
        assert str(error.value) == message
    union = Union({"a": Ngram(3, 1, 5, 2, 7), "b": DraftModel(tiny_draft(), [1, 1])})
    parts = (TreeAttention(tiny), Exact(), SAMPLED, StopRule(8))
    with pytest.raises(InputError, match="expected drafters whose children are chosen by rank, got DraftModel, which"):
        speculative(PROMPTS, union, *parts, SEEDS)
