"""Several drafters in one tree: merged as they should be, shared out as they deserve, and exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import fresh_adapter
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from drafters.none import NoDrafter
from drafters.union import UnionDrafter
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import Drafter, DraftState, Session, Traits, traits_of
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree
from tests.conftest import tiny_draft
from tests.support.states import kept
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
        self.told.append(state.kept.path.tolist())
        tokens, parents = [state.rows[0][-1]], [-1]
        for path in self.paths:
            for depth, token in enumerate(path):
                parents.append(len(tokens) - 1 if depth else 0)
                tokens.append(token)
        return TokenTree.from_rows([tokens] * len(state.rows), [parents] * len(state.rows))


def step(union: UnionDrafter, tiny: TargetModel, path: list[list[int]], sampling: SamplingParams = GREEDY) -> TokenTree:
    rows = [[1, 2, 3]] * len(path)
    streams = Streams([[0, r] for r in range(len(path))], sampling, torch.device("cpu"))
    return union.propose(DraftState(rows, kept(path), [9] * len(path), streams))


def begun(tiny: TargetModel, nodes: int | None = None, **drafters: Drafter) -> UnionDrafter:
    union = UnionDrafter(drafters, nodes)
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


def test_a_node_of_several_drafters_is_one_of_the_budget(tiny: TargetModel) -> None:
    """And each hears of its own nodes, whatever was left out. Of 7 8 9 4 | 5 6 all but the last remain."""
    a, b = Fixed([7, 8, 9], [4]), Fixed([4, 5], [7, 8, 6])
    union = begun(tiny, nodes=5, a=a, b=b)
    assert union.max_nodes == 6
    tree = step(union, tiny, [[0, 1, 2]])
    tree.validate(tiny.vocab_size)
    assert tree.tokens.tolist() == [[3, 7, 8, 9, 4, 5]]
    step(union, tiny, [[0, 4, 5]])
    assert (a.told[-1], b.told[-1]) == ([[0, 4, 1 << 30]], [[0, 1, 2]])
    a, b = Fixed([7, 8, 9]), Fixed([4, 5])
    union = begun(tiny, nodes=3, a=a, b=b)
    assert step(union, tiny, [[0, 1, 2]]).tokens.tolist() == [[3, 7, 8, 4]]  # 9 comes before 4, and is left out
    step(union, tiny, [[0, 3]])
    assert (a.told[-1], b.told[-1]) == ([[0, 1 << 30]], [[0, 1]])


TEXT = np.random.default_rng(0).integers(50, size=600).tolist()
GUESS = 100  # what a wrong guess differs by, of the first drafter; twice that, of the second


class Knowing:
    """Knows TEXT, and drafts chains of it; where `right` says so, else of other tokens. sure: what it says of each."""

    def __init__(self, right: Callable[[int], bool], guess: int, nodes: int, sure: float | None = None) -> None:
        self.right, self.guess, self.nodes, self.sure, self.max_nodes = right, guess, nodes, sure, nodes + 1

    def start(self, session: Session) -> None:
        pass

    def propose(self, state: DraftState) -> TokenTree:
        at = len(state.rows[0])
        drafted = [token + (0 if self.right(at) else self.guess) for token in TEXT[at : at + self.nodes]]
        sure = None if self.sure is None else [[1.0] + [self.sure] * len(drafted)]
        return TokenTree.from_rows([[TEXT[at - 1], *drafted]], [list(range(-1, len(drafted)))], confidence=sure)


def drafted(tiny: TargetModel, union: UnionDrafter) -> dict[int, list[int]]:
    """The loop without a model, which writes TEXT: where each tree stands, and its tokens less the right ones."""
    union.start(Session(tiny, [TEXT[:1]], GREEDY, 4000))
    at, path, found, streams = 2, [0], {}, Streams([[0]], GREEDY, torch.device("cpu"))
    while at < len(TEXT) - 10:
        state = DraftState([TEXT[:at]], kept([path]), [99], streams)
        tree = union.propose(state)
        tree.validate(1000)
        depth = tree.depth[0].tolist()
        found[at] = [token - TEXT[at - 1 + deep] for token, deep in zip(tree.tokens[0].tolist(), depth, strict=True)]
        path = [node for node, off in enumerate(found[at]) if off == 0]
        found[at], at = found[at][1:], at + len(path)
    return found


def test_the_budget_goes_to_the_drafter_that_is_right(tiny: TargetModel) -> None:
    for order in (1, -1):
        drafters = {"good": Knowing(lambda at: True, 0, 6), "bad": Knowing(lambda at: False, GUESS, 6)}
        trees = list(drafted(tiny, UnionDrafter(dict(list(drafters.items())[::order]), nodes=6)).values())
        assert sorted(trees[0]) == [0] * 3 + [GUESS] * 3  # nothing is known, and neither says
        assert all(tree == [0] * 6 for tree in trees[8:])


@pytest.mark.parametrize("justified", [True, False])
def test_a_drafter_that_is_sure_is_believed_at_once_until_it_is_wrong(tiny: TargetModel, justified: bool) -> None:
    drafters = {
        "doubts": Knowing(lambda at: not justified, 2 * GUESS, 6, 0.4),
        "sure": Knowing(lambda at: justified, GUESS, 6, 0.95),
    }
    trees = list(drafted(tiny, UnionDrafter(drafters, nodes=6)).values())
    assert trees[0] == [0 if justified else GUESS] * 6
    assert all(tree == [0] * 6 for tree in trees[20:])


def test_a_budget_turns_with_the_text(tiny: TargetModel) -> None:
    """From copying to new text and back: what one has lost, the other gets, within some steps."""
    drafters = {
        "copies": Knowing(lambda at: not 200 <= at < 400, GUESS, 6),
        "invents": Knowing(lambda at: 200 <= at < 400, 2 * GUESS, 6),
    }
    trees = drafted(tiny, UnionDrafter(drafters, nodes=6))
    for begin in (0, 200, 400):
        after = [tree for at, tree in trees.items() if begin <= at < begin + 190]
        turned = next(i for i, tree in enumerate(after) if tree == [0] * 6)
        assert turned <= 16  # of 28, were no node wrong
        assert all(tree == [0] * 6 for tree in after[turned:])


class Exits(Fixed):
    traits = Traits(exit_layer=1)


def test_what_the_target_has_begun_to_read_stays_as_it_is(tiny: TargetModel) -> None:
    """First and whole, however little it is worth; the budget's other nodes go on from it, or beside it."""
    exits, other = Exits([7, 8], [9]), Fixed([7, 8, 6, 5], [4])
    for nodes, tokens in ((2, []), (3, []), (4, [4]), (5, [6, 4]), (6, [6, 5, 4]), (9, [6, 5, 4])):
        tree = step(begun(tiny, nodes=nodes, a=other, b=exits), tiny, [[0, 1, 2]])
        assert tree.tokens.tolist() == [[3, 7, 8, 9, *tokens]]
        assert tree.parents.tolist() == [[-1, 0, 1, 0, *({6: 2, 5: 4, 4: 0}[token] for token in tokens)]]


def makers() -> dict[str, Callable[[TargetModel], Drafter]]:
    return {
        "ngram and medusa": lambda t: UnionDrafter({"a": Ngram(3, 1, 5, 2, 7), "b": Medusa("fresh", 8)}, nodes=9),
        "draft model and ngram": lambda t: UnionDrafter(
            {"a": DraftModel(tiny_draft(), children="top_k"), "b": Ngram(3, 1, 5, 2, 7)}
        ),
        "early exit, ngram, draft model": lambda t: UnionDrafter(
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
    assert traits_of(union).exit_layer == (1 if "early" in name else None)
    for sampling in (GREEDY, SAMPLED):
        parts = (TreeAttention(tiny), Exact(), sampling, StopRule(24, tiny.eos))
        done = speculative(PROMPTS, union, *parts, SEEDS)
        alone = [speculative([p], union, *parts, [seed]) for p, seed in zip(PROMPTS, SEEDS, strict=True)]
        if sampling.greedy or traits_of(union).exit_layer is None:  # see EarlyExit
            assert done.texts == [generation.texts[0] for generation in alone]
            nodes = [[record.nodes for record in done.steps if record.row == row] for row in range(len(PROMPTS))]
            assert nodes == [[record.nodes for record in generation.steps] for generation in alone]
        if sampling.greedy:
            assert done.texts == autoregressive(PROMPTS, tiny, sampling, StopRule(24, tiny.eos), SEEDS).texts
        assert 0 < (StepMetrics.of(done.steps).acceptance_rate or 0) < 1
        assert max(record.nodes for record in done.steps) < union.max_nodes


def test_an_adapter_in_a_union_misses_nothing() -> None:
    """Nodes that only the n-gram drafter proposed are read by the adapter afterwards: one that is the rest of the
    target goes on being right."""
    tiny = load_tiny(device="cpu", layers=3)
    exits = EarlyExit(1, fresh_adapter(tiny, 1, layers=[1, 2]), depth=2, nodes=2)
    union = UnionDrafter({"exit": exits, "ngram": Ngram(3, 1, 6, 2, 12)})
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
            {"drafters": {"a": NoDrafter(), "b": NoDrafter()}, "nodes": 0},
            "drafter.nodes: expected an integer >= 1, or null, got 0; raise it",
        ),
    ]
    for options, message in cases:
        with pytest.raises(InputError) as error:
            UnionDrafter(**options)
        assert str(error.value) == message
    union = UnionDrafter({"a": Ngram(3, 1, 5, 2, 7), "b": DraftModel(tiny_draft(), [1, 1])})
    parts = (TreeAttention(tiny), Exact(), SAMPLED, StopRule(8))
    with pytest.raises(InputError, match="expected drafters whose children are chosen by rank, got DraftModel, which"):
        speculative(PROMPTS, union, *parts, SEEDS)
