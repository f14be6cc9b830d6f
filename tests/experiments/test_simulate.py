"""Replays against live runs, search against brute force and against Sequoia's recursion, statistics by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from drafters.medusa import Medusa
from drafters.ngram import Ngram
from experiments import bench, simulate
from specdec.decoding.generate import speculative
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.hardware import DraftCost
from specdec.hardware.acceptance import LEAST, Acceptances, counted
from specdec.hardware.planning import best_plan, independent
from specdec.metrics import StepMetrics, StepRecord
from specdec.model.target import TargetModel
from specdec.replay.record import Recorder
from specdec.replay.replay import Costs, Fixed, accepted, replay, times
from specdec.replay.trace import TextTrace, Trace, TraceOrigin
from specdec.trees.topology import Topology
from tests.drafters.medusa.made import perfect_heads
from tests.support.commands import Done, command
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [[5, 6, 7], [8, 9], [40, 41, 42, 43, 44], [200]]
GREEDY, STOP = SamplingParams(), StopRule(40)
SHORT = ["target=tiny", "target.device=cpu", "tracker=none", "report=false", "generation.max_new_tokens=16"]


def live(drafter: Drafter, target: TargetModel) -> tuple[list[list[int]], StepMetrics]:
    seeds = [[0, row] for row in range(len(PROMPTS))]
    done = speculative(PROMPTS, drafter, TreeAttention(target), Exact(), GREEDY, STOP, seeds)
    return done.texts, StepMetrics.of(done.steps)


def recorded(drafter: Drafter, target: TargetModel) -> Trace:
    texts, _ = live(drafter, target)
    recorder = Recorder(drafter, target, GREEDY, STOP, ranks=8)
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        recorder.add(prompt, text, prompt=str(number), category="c", turn=0, repeat=0, batch=0)
    return recorder.trace({"drafter": "d", "target": "tiny"}, len(PROMPTS))


def test_a_trace_of_medusa_replays_every_tree_as_it_runs(tiny: TargetModel) -> None:
    """Heads that are right in the first half of each text: other trees step over other positions."""
    heads = perfect_heads(tiny, PROMPTS, 3, 12)
    trace = recorded(Medusa(heads, [[0], [0, 0], [1]]), tiny)
    for paths in ([[0]], [[0], [0, 0], [1]], [[1], [2], [1, 0]], [[0], [0, 0], [0, 0, 0], [1], [1, 0]]):
        figures = live(Medusa(heads, paths), tiny)[1]
        replayed = replay(trace, Topology.of(paths))
        assert (replayed.steps.sum(), replayed.tokens.sum()) == (figures.steps, figures.tokens)
        assert replayed.tau[0] == figures.tokens_per_step
        assert replayed.exact
    assert replay(trace, None).tau[0] == live(Medusa(heads, [[0], [0, 0], [1]]), tiny)[1].tokens_per_step


@pytest.mark.parametrize("nodes", [1, 3, 7, 12])
def test_a_trace_of_a_lookup_replays_every_beginning_of_its_trees(tiny: TargetModel, nodes: int) -> None:
    trace = recorded(Ngram(3, 1, 6, 3, 12), tiny)
    figures = live(Ngram(3, 1, 6, 3, nodes), tiny)[1]
    replayed = replay(trace, nodes)
    assert (replayed.steps.sum(), replayed.tau[0]) == (figures.steps, figures.tokens_per_step)


def test_a_trace_survives_the_disk(tiny: TargetModel, tmp_path: Path) -> None:
    for drafter in (Ngram(3, 1, 6, 3, 12), Medusa("fresh", 7)):
        trace = recorded(drafter, tiny)
        trace.write(tmp_path)
        read = Trace.read(tmp_path)
        assert read.origin == trace.origin
        assert replay(read, None).tau == replay(trace, None).tau
        for ours, theirs in zip(trace.texts, read.texts, strict=True):
            assert (ours.right == theirs.right).all()
    (tmp_path / "trace.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="run: expected a run that was recorded, got"):
        Trace.read(tmp_path)


def made(positions: int, texts: int = 1, depths: int = 4, ranks: int = 10) -> Trace:
    """Candidates that are right now and then."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(texts):
        tokens = rng.integers(0, 20, positions + 1)
        ids = rng.permuted(np.broadcast_to(np.arange(20), (positions, depths, 20)), axis=2)[..., :ranks]
        logp = np.full((positions, ranks), -9.0)
        found.append(TextTrace(str(number), "c", 0, 0, number, 5, tokens, ids[:, 0], logp, ids, ids * 0.0))
    return Trace(TraceOrigin("medusa", "tiny", 258, 0.0, positions, 1, depths, ranks, [[0]]), found)


def test_a_thousand_replays_of_ten_thousand_positions_take_under_a_minute() -> None:
    """In a process of its own: this one checks types."""
    code = "from tests.experiments.test_simulate import seconds_of_twenty_replays; print(seconds_of_twenty_replays())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert float(done.stdout) * 50 < 60


def seconds_of_twenty_replays() -> float:
    trace = made(2000, texts=5)
    tree = Topology.of([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]])
    replay(trace, tree)
    begun = time.process_time()
    for _ in range(20):
        times(replay(trace, tree), Costs(Fixed(1.0)))
    return time.process_time() - begun


def test_accepted_is_the_longest_right_path_by_hand() -> None:
    tokens = np.array([9, 1, 2, 3])
    ids = np.array([[[1, 5], [7, 2]], [[2, 6], [3, 4]], [[8, 3], [1, 1]]])
    text = TextTrace("p", "c", 0, 0, 0, 1, tokens, ids[:, 0], np.zeros((3, 2)), ids, ids * 0.0)
    assert text.right.tolist() == [[0, 1], [0, 0], [1, -1]]
    assert accepted(text, Topology.of([[0], [0, 0]])).tolist() == [1, 2, 0]
    assert accepted(text, Topology.of([[0], [1], [0, 1]])).tolist() == [2, 1, 1]


def test_a_sharp_target_at_a_low_temperature_accepts_as_greedy_does(tiny: TargetModel) -> None:
    trace = recorded(Medusa(perfect_heads(tiny, PROMPTS, 3, 12), [[0], [0, 0]]), tiny)
    warm = replay(trace, None, 0.001)
    assert not warm.exact
    assert warm.tau[0] == pytest.approx(replay(trace, None).tau[0], rel=0.02)
    assert replay(trace, None, 5.0).tau[0] < warm.tau[0]


def test_time_is_what_the_costs_say() -> None:
    trace = made(50)
    replayed = replay(trace, Topology.of([[0], [1]]))
    spent = times(replayed, Costs(Fixed(2.0), DraftCost(once=Fixed(1.0)), 0.5, {(0, 0, 0): 10.0}))
    assert spent.seconds.tolist() == [10 + 3.5 * replayed.steps[0]]
    assert spent.plain.tolist() == [10 + 2.0 * 50]
    assert spent.speedup[0] == pytest.approx(110 / (10 + 3.5 * replayed.steps[0]))


# ---- search -------------------------------------------------------------------------------------------------------


class Steps:
    """Rises by the node, and jumps after every fourth."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return 1.0 + self.slope * nodes + 0.3 * ((nodes - 1) // 4)


def every_tree(depth: int, ranks: int, most: int) -> list[tuple]:
    paths = [p for d in range(1, depth + 1) for p in np.ndindex(*[ranks] * d)]
    trees = [chosen for size in range(1, most + 1) for chosen in combinations(paths, size)]
    return [t for t in trees if all(len(p) == 1 or p[:-1] in t for p in t)]


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2, 2.0])
@pytest.mark.parametrize("each", [0.0, 0.15, 0.6])
def test_no_tree_is_faster_than_the_one_that_is_found(slope: float, each: float) -> None:
    rates = [[0.5, 0.3], [0.4, 0.35], [0.7, 0.1]]
    verify, draft = Steps(slope), DraftCost(level=Fixed(each))
    found = best_plan(independent(rates, 6), verify, draft)

    def speed(tree: tuple) -> float:
        tokens = 1 + sum(np.prod([rates[d][r] for d, r in enumerate(path)]) for path in tree)
        return float(tokens / (verify.seconds(len(tree) + 1) + each * max(map(len, tree))))

    best = max(1 / verify.seconds(1), *(speed(tree) for tree in every_tree(3, 2, 6)))
    assert found.tokens_per_second == pytest.approx(best, rel=1e-12)


def test_sequoias_recursion_over_size_and_depth_expects_the_same() -> None:
    rates = [[0.6, 0.2, 0.1], [0.5, 0.25, 0.05], [0.3, 0.3, 0.2], [0.6, 0.1, 0.1]]

    @cache
    def subtree(nodes: int, depth: int) -> float:
        """Most expected tokens of a subtree of so many nodes, its root counted, at this depth."""
        return 1 + children(nodes - 1, depth, 0)

    @cache
    def children(nodes: int, depth: int, rank: int) -> float:
        if nodes == 0 or depth == len(rates) or rank == len(rates[0]):
            return 0.0
        given = [rates[depth][rank] * subtree(n, depth + 1) for n in range(1, nodes + 1)]
        return max(
            children(nodes, depth, rank + 1),
            *(value + children(nodes - n, depth, rank + 1) for n, value in enumerate(given, 1)),
        )

    paths, gains = independent(rates, 24)[-1]
    for size in range(1, 25):
        assert 1 + sum(gains[:size]) == pytest.approx(max(subtree(n, 0) for n in range(1, size + 2)))
    assert len(paths) == 24


def test_a_search_over_64_nodes_is_quick() -> None:
    rates = [[0.5 * 0.6**rank for rank in range(10)]] * 8
    begun = time.process_time()
    best_plan(independent(rates, 64), Steps(0.01), DraftCost())
    assert time.process_time() - begun < 5


def test_both_halves_of_a_search_hold_every_category(tiny: TargetModel) -> None:
    """Also where prompts come in turns, one of each."""
    trace = recorded(Medusa("fresh", 3), tiny)
    texts = [replace(text, category="ab"[i % 2], batch=i) for i, text in enumerate([*trace.texts, *trace.texts])]
    judged, _, _ = simulate.best(replace(trace, texts=texts), Costs(Steps(0.1)), simulate.Options(nodes=3))
    assert {text.category for text in judged.texts} == {"a", "b"}
    assert len(judged.texts) == 4


def test_nothing_is_drafted_where_nothing_pays() -> None:
    assert best_plan(independent([[0.2]], 1), Steps(2.0), DraftCost()).paths == ()


def test_acceptances_are_counted_where_the_parent_was_right() -> None:
    right = np.array([[0, 1], [1, -1], [0, 0], [-1, -1]])
    counts = Acceptances.of_ranks(right, 2)
    assert counts.right.tolist() == [[2, 1], [1, 1]]
    assert counts.tried.tolist() == [[4, 4], [3, 3]]
    with pytest.raises(InputError, match=f"acceptance statistics: expected at least {LEAST} steps, got 4"):
        counts.rates()
    many = Acceptances(counts.right * 100, counts.tried * 100)
    assert many.rates()[0] == [0.5, 0.25]
    few, wide = (c.interval() for c in (many, counts))
    assert ((wide[1] - wide[0]) > (few[1] - few[0])).all()
    with pytest.raises(InputError, match="trace: expected at least 100 positions, got 4"):
        counted(right, 3)


def test_acceptances_of_any_run_by_hand() -> None:
    """Two children under the root, one under the first of them; the last step was cut by the end of the text."""
    parents = [-1, 0, 0, 1]
    steps = [([0, 1, 3], 3), ([0, 2], 2), ([0], 1), ([0, 1], 1)]
    records = [
        StepRecord(0, i, 1, 3, 2, len(path) - 1, emitted, path, [0] * emitted, {}, parents)
        for i, (path, emitted) in enumerate(steps)
    ]
    counts = Acceptances.of_steps(records)
    assert counts.right.tolist() == [[2, 1], [1, 0]]
    assert counts.tried.tolist() == [[4, 4], [1, 0]]


# ---- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    return command(bench.main, tmp_path / "run", monkeypatch, capsys)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    return command(simulate.main, tmp_path / "simulated", monkeypatch, capsys)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("drafter", ["medusa", "ngram"])
def test_a_recorded_run_is_simulated(
    tmp_path: Path, record: Callable[..., Done], simulated: Callable[..., Done], drafter: str, batch: int
) -> None:
    heads = ["drafter.heads=fresh"] if drafter == "medusa" else []
    options = [f"generation.batch_size={batch}", "prompts.limit=4", "record=true", "record_ranks=10"]
    done = record(*SHORT, f"drafter={drafter}", *heads, *options)
    assert done.status == 0, done.err
    assert "trace.npz will hold at most" in done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    done = simulated(f"run={tmp_path / 'run'}", "hardware=a100_80g")
    assert done.status == 0, done.err
    figures = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    assert figures["tokens_per_step"] == summary["tokens_per_step"]
    assert figures["steps"] == summary["steps"]
    assert figures["speedup"] > 0
    assert "exact" in done.out
    categories = {name: part["tokens_per_step"] for name, part in figures["by_category"].items()}
    alone = {name: part["tokens_per_step"] for name, part in summary["by_category"].items()} if batch == 1 else {}
    assert categories == alone
    done = simulated(f"run={tmp_path / 'run'}", "hardware=a100_80g", "tree=adaptive")
    assert done.status == 0, done.err
    figures = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    assert 0 <= figures["nodes_per_step"] <= 7
    assert "at these very costs" in done.out


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("size", [1, 4])
def test_a_tree_of_a_size_has_that_size_at_every_temperature(
    size: int, temperature: float, tmp_path: Path, record: Callable[..., Done], simulated: Callable[..., Done]
) -> None:
    """Steps are expectations at a temperature: counted nodes over them would come to more nodes than the tree has."""
    options = ["generation.max_new_tokens=64", "prompts.limit=3", "record=true"]
    done = record(*SHORT, "drafter=medusa", "drafter.heads=fresh", *options)
    assert done.status == 0, done.err
    done = simulated(f"run={tmp_path / 'run'}", f"tree={size}", f"temperature={temperature}")
    assert done.status == 0, done.err
    figures = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    assert figures["nodes_per_step"] == size
    assert f"{size}.0" in next(line for line in done.out.splitlines() if "drafted nodes per step" in line)


def test_the_best_tree_is_found_and_a_run_can_draft_it(
    tmp_path: Path, record: Callable[..., Done], simulated: Callable[..., Done]
) -> None:
    """It is as fast on the texts it was searched on as any other there; and a run with it makes the steps foretold."""
    medusa = ["drafter=medusa", "drafter.heads=fresh", "generation.max_new_tokens=64", "prompts.limit=6"]
    done = record(*SHORT, *medusa, "record=true", "record_ranks=10")
    assert done.status == 0, done.err
    run, tree = tmp_path / "run", tmp_path / "simulated" / "tree.yaml"
    done = simulated(f"run={run}", "tree=best", "hardware=rtx_3090", "nodes=12")
    assert done.status == 0, done.err
    assert "the best tree of each size" in done.out
    kept = yaml.safe_load(tree.read_text("utf-8"))
    assert 1 <= len(kept["paths"]) <= 12
    assert kept["recorded_in"] == str(run)
    best = tree.rename(tmp_path / "best.yaml")
    done = simulated(f"run={run}", f"tree={best}", "hardware=rtx_3090")
    foretold = json.loads((tmp_path / "simulated" / "summary.json").read_text())
    assert foretold["tokens_per_step"] > 1
    done = record(*SHORT, *medusa, f"drafter.tree={best}")
    assert json.loads((run / "summary.json").read_text())["steps"] == foretold["steps"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tree=best", "error: tree: expected costs to choose by, got none; pass profile=... or hardware=..."),
        ("tree=adaptive", "error: tree: expected costs to choose by, got none; pass profile=... or hardware=..."),
        ("acceptance=typical", "error: acceptance: expected exact, or at temperature 0 any lossless rule"),
        ("temperature=-1", "error: temperature: expected a number >= 0, got -1"),
        (
            "temperature=1",
            "error: temperature: expected 0: ngram records no ranked candidates, so only its greedy texts can be",
        ),
        ("tree=[[0]]", "error: tree: expected a number of nodes, or nothing: ngram draws its own trees"),
        ("tree=0", "error: tree: expected at least one node, got 0; raise it"),
        ("hardware=a100", "got 'a100'; did you mean a100_80g?"),
        ("profile=/nowhere", "/nowhere"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    tmp_path: Path, tiny: TargetModel, simulated: Callable[..., Done], override: str, message: str
) -> None:
    trace = recorded(Ngram(3, 1, 6, 3, 12), tiny)
    Trace(TraceOrigin(**{**trace.origin.__dict__, "drafter": "ngram"}), trace.texts).write(tmp_path)
    done = simulated(f"run={tmp_path}", override)
    assert done.status == 2
    assert message in done.err


def test_a_tree_wider_than_what_was_recorded_is_refused(tiny: TargetModel) -> None:
    trace = recorded(Medusa("fresh", [[0]]), tiny)
    with pytest.raises(InputError, match="tree: expected at most 1 deep and 8 candidates wide"):
        replay(trace, Topology.of([[8]]))


def test_no_candidates_cannot_be_recorded(tiny: TargetModel) -> None:
    with pytest.raises(InputError, match="record_ranks: expected 1 to"):
        Recorder(Ngram(3, 1, 6, 3, 12), tiny, GREEDY, STOP, ranks=0)
