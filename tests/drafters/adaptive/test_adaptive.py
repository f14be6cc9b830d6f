"""Adaptive trees: exact, never drafting where nothing can pay, and as good as the tree one would have chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from drafters.adaptive import Adaptive
from drafters.adaptive.costs import DraftCosts, VerifyCosts, timed
from drafters.adaptive.depth import FIRST, LONGEST_RETRY, DepthChoice
from drafters.adaptive.replayed import replay_adaptive
from drafters.draft_model.drafter import DraftModel
from drafters.eagle import Eagle
from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import fresh_adapter
from drafters.hydra_heads import Hydra
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from drafters.union import UnionDrafter
from experiments import bench
from specdec.decoding.generate import Generation, autoregressive, speculative
from specdec.decoding.protocols import Drafter, DraftState, Session, traits_of
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure.profiling import Point
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.replay.record import Recorder
from specdec.replay.replay import Costs
from specdec.trees.tree import TokenTree
from tests.conftest import tiny_draft
from tests.drafters.medusa.made import random_heads
from tests.support.states import kept
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.8, top_k=40)
PROMPTS = [[5, 6, 7, 8, 5, 6], [9, 3], [11, 12, 13, 14]]
SEEDS = [[0, 0], [0, 1], [0, 2]]


@dataclass(frozen=True)
class Linear:
    """Seconds of a forward: the first node's, and each further one's."""

    first: float
    more: float

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return self.first + self.more * (nodes - 1)


def generated(drafter: Drafter, tiny: TargetModel, sampling: SamplingParams = GREEDY, tokens: int = 40) -> Generation:
    parts = (TreeAttention(tiny), Exact(), sampling, StopRule(tokens, frozenset()))
    return speculative(PROMPTS, drafter, *parts, SEEDS)


def makers() -> dict[str, Callable[[TargetModel], Drafter]]:
    return {
        "ngram": lambda t: Ngram(3, 1, 6, 3, 12),
        "medusa": lambda t: Medusa("fresh", 31),
        "draft model, chain": lambda t: DraftModel(tiny_draft(), children="top_k"),
        "draft model, tree": lambda t: DraftModel(tiny_draft(), nodes=12, depth=4, beam=3),
        "eagle": lambda t: Eagle("fresh", depth=3, beam=2, nodes=8),
        "hydra heads": lambda t: Hydra("fresh", depth=3, beam=2, nodes=8),
        "early exit": lambda t: EarlyExit(1, fresh_adapter(t, 1, layers=[0]), depth=3, beam=2, nodes=6),
        "union": lambda t: UnionDrafter(
            {"a": Ngram(3, 1, 5, 2, 7), "b": DraftModel(tiny_draft(), nodes=8, depth=4, beam=3)}
        ),
    }


@pytest.mark.parametrize("name", makers())
@pytest.mark.parametrize("costs", [Linear(1, 0.02), Linear(1, 0.4), "auto"], ids=["cheap", "dear", "timed"])
def test_text_is_the_targets_own(tiny: TargetModel, name: str, costs: Linear | str) -> None:
    adaptive = Adaptive(makers()[name](tiny), costs)
    assert traits_of(adaptive).exit_layer == (1 if name == "early exit" else None)
    done = generated(adaptive, tiny)
    assert done.texts == autoregressive(PROMPTS, tiny, GREEDY, StopRule(40, frozenset()), SEEDS).texts
    assert max(record.nodes for record in done.steps) < adaptive.max_nodes


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_a_drafter_that_is_the_target_is_always_right(kind: str) -> None:
    """Whatever is cut: its cache goes on from what was accepted."""
    tiny = load_tiny(device="cpu")
    inner = DraftModel(load_tiny(device="cpu"), children="top_k")
    if kind == "tree":
        inner = DraftModel(load_tiny(device="cpu"), nodes=9, depth=4, beam=2)
    done = generated(Adaptive(inner, Linear(1, 0.1), draft_ms=50), tiny, tokens=60)
    metrics = StepMetrics.of(done.steps)
    assert metrics.acceptance_at_depth[0] == 1.0
    assert metrics.tokens_per_step > 2


def test_sampled_trees_depend_on_the_past_alone(tiny: TargetModel) -> None:
    """Runs whose draws differ propose the same trees for as long as their texts are the same."""
    runs: list[list[tuple[list[int], TokenTree]]] = []

    class Watched(Adaptive):
        def propose(self, state: DraftState) -> TokenTree:
            tree = super().propose(state)
            runs[-1].append((list(state.rows[0]), tree))
            return tree

    for seed in range(8):
        runs.append([])
        drafter = Watched(DraftModel(tiny_draft(), nodes=8, depth=4, beam=3), Linear(1, 0.1), draft_ms=20)
        parts = (TreeAttention(tiny), Exact(), SamplingParams(temperature=0.5, top_k=2), StopRule(20, frozenset()))
        speculative(PROMPTS[:1], drafter, *parts, [[seed]])
    shared = 0
    for first, other in itertools.combinations(runs, 2):
        for (text, tree), (other_text, other_tree) in zip(first, other, strict=False):
            if text != other_text:
                break
            shared += 1
            assert tree.tokens.equal(other_tree.tokens)
            assert tree.parents.equal(other_tree.parents)
    assert shared > 20


def test_nothing_is_drafted_where_nothing_can_pay(tiny: TargetModel) -> None:
    """A node that takes as long as a step is not worth it, were it always right; nor is one with a dear draft."""
    certain = DraftModel(load_tiny(device="cpu"), children="top_k")
    for costs, draft_ms in ((Linear(1, 1), None), (Linear(1, 1.5), 0.0), (Linear(1, 0.1), 4000)):
        done = generated(Adaptive(certain, costs, draft_ms, clock=lambda: 0.0), tiny)  # a stall is a dear draft
        assert {record.nodes for record in done.steps} == {0}
    paying = generated(Adaptive(certain, Linear(1, 0.1), 100), tiny)
    assert StepMetrics.of(paying.steps).tokens_per_step > 2.5


def test_free_nodes_are_all_drafted_and_dear_ones_are_not(tiny: TargetModel) -> None:
    @dataclass(frozen=True)
    class Stairs:
        def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
            return 1.0 if nodes <= 4 else 100.0

    inner = DraftModel(tiny_draft(), nodes=12, depth=4, beam=3)
    done = generated(Adaptive(inner, Stairs(), draft_ms=0), tiny)
    long_before_the_end = [record.nodes for record in done.steps if record.step < 3]
    assert set(long_before_the_end) == {3}
    assert max(record.nodes for record in generated(Adaptive(inner, Linear(1, 0), draft_ms=0), tiny).steps) == 12


class Knowing:
    """Knows the text, and drafts chains whose tokens are right with a probability of their own, which it may tell."""

    def __init__(self, text: Sequence[int], rates: Sequence[float], nodes: int, tells: bool) -> None:
        self.text, self.rates, self.nodes, self.tells = list(text), rates, nodes, tells
        self.max_nodes = nodes + 1

    def start(self, session: Session) -> None:
        pass

    def propose(self, state: DraftState) -> TokenTree:
        at, depth = len(state.rows[0]), min(self.nodes, max(state.room[0] - 1, 0))
        right, sure = self.chain(at, depth)
        drafted = [token if is_right else token + 1 for token, is_right in zip(self.text[at:], right, strict=False)]
        tokens, parents = [[state.rows[0][-1], *drafted]], [list(range(-1, len(drafted)))]
        return TokenTree.from_rows(tokens, parents, confidence=[[1.0, *sure]] if self.tells else None)

    def chain(self, at: int, depth: int) -> tuple[list[bool], list[float]]:
        random, depth = np.random.default_rng(at), min(depth, len(self.text) - at)
        sure = random.choice(self.rates, size=self.nodes)
        return (random.random(self.nodes) < sure)[:depth].tolist(), sure[:depth].tolist()


TEXT = np.random.default_rng(0).integers(50, size=2000).tolist()


def nodes_by_step(drafter: Drafter, tiny: TargetModel) -> list[int]:
    """The loop on chains, without a model: TEXT is written, its first token the prompt."""
    drafter.start(Session(tiny, [TEXT[:1]], GREEDY, 4000))
    at, path, nodes, streams = 2, [0], [], Streams([[0]], GREEDY, torch.device("cpu"))
    while at < len(TEXT):
        tree = drafter.propose(DraftState([TEXT[:at]], kept([path]), [len(TEXT) - at], streams))
        drafted = tree.tokens[0, 1:].tolist()
        right = list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(drafted, TEXT[at:], strict=False)))
        path, at = list(range(len(right) + 1)), at + len(right) + 1
        nodes.append(len(drafted))
    return nodes


def chains_by_step(knowing: Knowing, nodes: int) -> list[int]:
    """The same for chains of that many nodes."""
    at, drafted = 2, []
    while at < len(TEXT):
        right, _ = knowing.chain(at, min(nodes, len(TEXT) - at - 1))
        drafted.append(len(right))
        at += 1 + sum(itertools.takewhile(bool, right))
    return drafted


@pytest.mark.parametrize(
    ("rates", "tells"), [([0.95], True), ([0.7], True), ([0.7], False), ([0.4, 0.95], True), ([0.05], False)]
)
def test_close_to_the_best_fixed_tree_wherever_that_is(tiny: TargetModel, rates: list[float], tells: bool) -> None:
    """By the curve that both are charged with: 0.97 of the best chain of 0 to 10 nodes, and far above the worst."""
    curve = Linear(1, 0.12)

    knowing = Knowing(TEXT, rates, 10, tells)

    def speed(steps: Sequence[int]) -> float:
        return (len(TEXT) - 2) / sum(curve.seconds(nodes + 1) for nodes in steps)

    fixed = [speed(chains_by_step(knowing, nodes)) for nodes in range(11)]
    adaptive = speed(nodes_by_step(Adaptive(knowing, curve, draft_ms=0), tiny))
    assert adaptive >= 0.97 * max(fixed)
    assert adaptive > 1.2 * min(fixed)
    if tells and len(rates) > 1:  # what no fixed tree can do
        assert adaptive > 1.05 * max(fixed)


def test_every_proposal_is_held_against_what_came(tiny: TargetModel) -> None:
    """Nodes that were not verified teach as well: what is never drafted is known all the same."""
    adaptive = Adaptive(Knowing(TEXT, [0.3], 4, tells=False), Linear(1, 0.8), draft_ms=0)
    assert nodes_by_step(adaptive, tiny)[-1000:] == [0] * 1000
    assert adaptive._estimates.rates()[0] == pytest.approx(0.3, abs=0.1)


def test_depths_that_do_not_pay_are_tried_again_ever_less_often() -> None:
    choice, price = DepthChoice(), np.array([0.0, 0.1, 0.2])

    def steps(count: int, worth: list[float]) -> list[int | None]:
        asked: list[int | None] = []
        for _ in range(count):
            asked.append(choice.choose(price[: choice.deepest + 1], most=5.0))
            choice.learn(asked[-1], np.array(worth)[: 1 + (2 if asked[-1] is None else asked[-1])])
        return asked

    assert steps(FIRST, [0.0, 0.05, 0.06]) == [None] * FIRST
    asked = steps(400, [0.0, 0.05, 0.06])
    assert set(asked) == {None, 0}
    waits = np.diff([i for i, depth in enumerate(asked) if depth is None]).tolist()
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_RETRY + 1
    assert steps(300, [0.0, 0.5, 0.55])[-20:].count(1) >= 19  # what begins to pay is found, and how deep it does
    assert steps(300, [0.0, 0.5, 0.9])[-20:] == [None] * 20
    assert choice.choose(price, most=0.05) == 0


def test_hopeless_sizes_are_not_timed(tiny: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def forward_ms(target: TargetModel, cache: object, point: Point) -> float:
        seen.append(point.tokens)
        return float(point.tokens * point.batch)

    monkeypatch.setattr("drafters.adaptive.costs.forward_ms", forward_ms)
    assert timed(tiny, 40, 2, 64) == pytest.approx(np.arange(1, 41) * 2e-3)
    assert max(seen) == 8
    assert timed(tiny, 5, 1, 64) == pytest.approx(np.arange(1, 6) * 1e-3)


def test_a_verify_that_skips_padding_is_shared_by_what_pays_most(tiny: TargetModel) -> None:
    """One row of two is sure: where rows are padded both get as many nodes, else the sure row's go on."""

    class TwoRows(Knowing):
        def propose(self, state: DraftState) -> TokenTree:
            chain, sure = [9] * self.nodes, [1.0, *[0.99] * self.nodes]
            rows = [[row[-1], *chain] for row in state.rows]
            return TokenTree.from_rows(rows, [list(range(-1, self.nodes))] * 2, confidence=[sure, [0.05] * len(sure)])

    def drafted(skips: bool) -> list[int]:
        adaptive = Adaptive(TwoRows([], [1.0], 6, tells=True), Linear(1, 0.2), draft_ms=0, nodes=5)
        adaptive.start(Session(tiny, [[1], [2]], GREEDY, 60))
        adaptive._choice._skips_padding = skips
        streams = Streams([[0], [1]], GREEDY, torch.device("cpu"))
        tree = adaptive.propose(DraftState([[1], [2]], kept([[0], [0]]), [50, 50], streams))
        tree.validate(100)
        return (tree.valid.sum(1) - 1).tolist()

    assert drafted(skips=True) == [5, 0]
    assert drafted(skips=False) == [5, 5]


def test_costs(tiny: TargetModel) -> None:
    costs, session = VerifyCosts(None), Session(tiny, PROMPTS, GREEDY, 60)
    seconds = costs.seconds(session, 20)
    assert len(seconds) == 20
    assert (np.diff(seconds) >= 0).all()
    assert costs.seconds(session, 20) is seconds  # timed once
    assert VerifyCosts(Linear(1, 2)).seconds(session, 3).tolist() == [1, 3, 5]
    draft = DraftCosts(None)
    assert draft.seconds(2).tolist() == [0, 0, 0]
    for time in (4.0, 4.0, 400.0):
        draft.learn(4, time)
    assert draft.seconds(4).tolist() == [0, 1, 2, 3, 4]
    draft.learn(1, 3.0)
    assert draft.seconds(4)[1] == 3.0
    assert DraftCosts(0.5).seconds(2).tolist() == [0, 0.5, 1.0]


def test_rows_share_a_verify_and_finished_ones_draft_nothing(tiny: TargetModel) -> None:
    adaptive = Adaptive(Medusa("fresh", 15), Linear(1, 0.01), draft_ms=0)
    adaptive.start(Session(tiny, PROMPTS, GREEDY, 60))
    parts = (TreeAttention(tiny), Exact(), GREEDY, StopRule(30, frozenset([3])))
    done = speculative(PROMPTS, adaptive, *parts, SEEDS)
    alone = [speculative([p], adaptive, *parts, [s]).texts[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert done.texts == alone


def test_bench_has_it_for_any_drafter(call: Callable[..., tuple]) -> None:
    common = ("target=tiny", "drafter=ngram", "tree=adaptive", "tracker=none", "report=false", "prompts.limit=2")
    status, summary, printed = call(bench.main, *common, "generation.max_new_tokens=16")
    assert status == 0, printed
    assert summary["tree"] == "adaptive"
    assert summary["divergence"]["identical"] == summary["divergence"]["total"]
    assert "ngram with adaptive trees on tiny" in printed
    status, _, printed = call(bench.main, *common, "tree=static")
    assert status == 2
    assert "tree: expected one of as_drafted, adaptive, got 'static'; for a static tree, pass drafter.tree" in printed
    status, _, printed = call(bench.main, *common, "record=true")
    assert status == 2
    assert "record: expected a drafter whose tree depends on the text alone, got Adaptive" in printed


def test_bad_input(tiny: TargetModel) -> None:
    inner = Ngram(3, 1, 5, 2, 7)
    with pytest.raises(InputError, match=r"adaptive.nodes: expected an integer >= 1, or null, got 0"):
        Adaptive(inner, nodes=0)
    with pytest.raises(InputError, match=r"adaptive.draft_ms: expected milliseconds >= 0, got -1"):
        Adaptive(inner, draft_ms=-1)
    with pytest.raises(InputError, match=r"nowhere.json"):
        Adaptive(inner, "nowhere.json")
    with pytest.raises(InputError, match="expected drafters whose children are chosen by rank, got DraftModel, which"):
        generated(Adaptive(DraftModel(tiny_draft(), [1, 1])), tiny, SAMPLED)
    assert Adaptive(inner, nodes=3).max_nodes == 4


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", ["medusa", "ngram"])
def test_a_replay_makes_the_steps_of_a_run(
    tiny: TargetModel, monkeypatch: pytest.MonkeyPatch, kind: str, rows: int
) -> None:
    """Return the same for a drafter that always drafts as deep as it can, at the same costs."""
    monkeypatch.setattr(DepthChoice, "choose", lambda *_: None)
    prompts = [[5, 6, 7], [8, 9], [40, 41, 42, 43, 44], [200]]
    drafter: Drafter = Medusa(random_heads(tiny), 15) if kind == "medusa" else Ngram(3, 1, 6, 3, 12)
    curve, stop = Linear(1, 0.12), StopRule(40)
    live, recorder = Adaptive(drafter, curve, draft_ms=0), Recorder(drafter, tiny, GREEDY, stop, ranks=10)
    steps, nodes = [], []
    for number in range(0, len(prompts), rows):
        batch, seeds = prompts[number : number + rows], [[0, row] for row in range(rows)]
        done = speculative(batch, live, TreeAttention(tiny), Exact(), GREEDY, stop, seeds)
        for row, (prompt, text) in enumerate(zip(batch, done.texts, strict=True)):
            of_row = [record.nodes for record in done.steps if record.row == row]
            steps.append(len(of_row))
            nodes.append(of_row)
            recorder.add(prompt, text, prompt=str(number + row), category="c", turn=0, repeat=0, batch=number)
    trace = recorder.trace({"drafter": kind, "target": "tiny"}, rows)
    replayed = replay_adaptive(trace, Costs(curve, padded=not tiny.skips_padding))
    assert replayed.steps.tolist() == steps
    made = [
        table[: steps[i * rows + row], row].tolist() for i, table in enumerate(replayed.nodes) for row in range(rows)
    ]
    assert made == nodes
    assert len({count for of_row in nodes for count in of_row}) > 2  # it did choose
    with pytest.raises(InputError, match=r"temperature: expected 0, for adaptive trees, got 0.5"):
        replay_adaptive(trace, Costs(curve), 0.5)
