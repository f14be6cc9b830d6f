"""Replay a trace with another tree, without a model: predict steps, tokens per step, and time.

At temperature 0 a replay is exact: the right token is known at every position, and a tree accepts its longest path of
right tokens. Above 0 it is an approximation, because nothing is known after a token that is not in the recorded text.
The replay then assumes that the acceptance is the same as in the recorded text, and steps are expectations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from specdec.errors import InputError
from specdec.hardware.curves import CostCurve, DraftCost
from specdec.intervals import Interval, bootstrap_speedup, bootstrap_tau
from specdec.replay.trace import NOTHING, Array, TextTrace, Trace
from specdec.trees.topology import Topology

BatchKey = tuple[int, int, int]  # repeat, index of the batch, turn


@dataclass(frozen=True)
class Replay:
    """Predicted steps of a run.

    Args:
        trace: the trace.
        steps: number of steps of each text, [texts].
        tokens: tokens emitted by the steps of each text, [texts]; the first token of a text belongs to no step.
        nodes: for each batch, drafted nodes in each step, [steps rows]; 0 after the end of a text.
        levels: nodes at each depth of a static tree; empty for other trees.
        exact: True if a real run would make exactly these steps.
    """

    trace: Trace
    steps: Array
    tokens: Array
    nodes: Sequence[Array]
    levels: Sequence[int]
    exact: bool

    @property
    def tau(self) -> tuple[float, Interval | None]:
        """Tokens per step, with its 95 % interval over prompts."""
        names = [text.prompt for text in self.trace.texts]
        grouped = {name: [0.0, 0.0] for name in names}
        for name, steps, tokens in zip(names, self.steps, self.tokens, strict=True):
            grouped[name][0] += tokens
            grouped[name][1] += steps
        emitted, steps = zip(*grouped.values(), strict=True)
        return bootstrap_tau(emitted, steps)

    @property
    def nodes_per_step(self) -> float:
        """Mean number of drafted nodes per step and row; for a static tree its size."""
        if self.levels:
            return float(sum(self.levels))
        return float(sum(nodes.sum() for nodes in self.nodes) / self.steps.sum())

    @property
    def forwards(self) -> float:
        """Number of steps of all batches together; a batch has as many steps as its longest row."""
        return float(sum(max(self.steps[batch]) for batch in batches(self.trace).values()))


@dataclass(frozen=True)
class Fixed:
    """A `CostCurve` with one measured time, the same for any number of nodes."""

    time: float

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return self.time


@dataclass(frozen=True)
class Costs:
    """Times from which the speed of a replay is computed.

    Args:
        verify: cost of the target's forward.
        draft: cost of drafting.
        step: seconds of everything else in a step (accepting, committing); plain decoding has none of it.
        prompt: seconds of the prefill of each batch, by the keys of `batches`; missing ones count as 0.
        padded: True if a forward takes as long as if all rows had as many nodes as the largest; False if its time
            depends on the mean number of nodes.
    """

    verify: CostCurve
    draft: DraftCost = field(default_factory=DraftCost)
    step: float = 0.0
    prompt: Mapping[BatchKey, float] = field(default_factory=dict)
    padded: bool = True


@dataclass(frozen=True)
class Times:
    """Predicted times of each batch.

    Args:
        tokens: new tokens, [batches].
        seconds: time with drafting, prefill included, [batches].
        plain: time of plain decoding, prefill included, [batches].
        prompts: time of the prefill, [batches].
    """

    tokens: Array
    seconds: Array
    plain: Array
    prompts: Array

    @property
    def tokens_per_second(self) -> float:
        return float(self.tokens.sum() / self.seconds.sum())

    @property
    def plain_tokens_per_second(self) -> float:
        return float(self.tokens.sum() / self.plain.sum())

    @property
    def speedup(self) -> tuple[float, Interval | None]:
        """Speedup over plain decoding, with its 95 % interval over prompts. Errors of the costs are not included."""
        tokens = self.tokens.tolist()
        return bootstrap_speedup(tokens, self.seconds.tolist(), tokens, self.plain.tolist())


def replay(trace: Trace, tree: Topology | int | None, temperature: float | None = None) -> Replay:
    """Predict the steps of a run with another tree.

    Args:
        trace: the trace.
        tree: for a drafter that ranks candidates, the tree's index paths; None for the recorded one. For other
            drafters, the number of first nodes of each recorded tree; None for all.
        temperature: temperature of the run; None for the recorded one. Above 0, children are chosen by rank, and the
            rule is the exact one.

    Raises:
        InputError: the trace does not hold what this tree or temperature needs.
    """
    temperature = trace.origin.temperature if temperature is None else temperature
    tree = _checked(trace, tree, temperature)
    if temperature > 0:
        assert isinstance(tree, Topology)
        return _expected(trace, tree, temperature)
    visited = [_walk(text, accepted(text, tree)) for text in trace.texts]
    nodes = [_nodes(text, tree)[roots] for text, roots in zip(trace.texts, visited, strict=True)]
    steps, tokens = np.array([len(roots) for roots in visited]), np.array([t.positions for t in trace.texts])
    recorded = trace.origin.temperature == 0
    return Replay(trace, steps, tokens, _by_step(trace, nodes), _levels(tree), recorded)


def accepted(text: TextTrace, tree: Topology | int) -> Array:
    """Return the number of right drafted tokens, for a tree rooted at each position, [positions]."""
    return (right_nodes(text, tree) != NOTHING).sum(1)


def right_nodes(text: TextTrace, tree: Topology | int) -> Array:
    """Return the right node at each depth, for a tree rooted at each position, [positions depths].

    -1 from the first depth at which no node is right.
    """
    right = text.right.astype(np.int64)
    if isinstance(tree, int):
        return np.where(((right >= 0) & (right <= tree)).cumprod(1), right, NOTHING)
    child, found = _children(tree), np.full((len(right), min(tree.depth, right.shape[1])), NOTHING)
    node = np.zeros(len(right), dtype=np.int64)
    for depth in range(found.shape[1]):
        rank = right[:, depth]
        known = (rank >= 0) & (rank < tree.ranks) & (node >= 0)
        node = np.where(known, child[node, rank.clip(0, tree.ranks - 1)], NOTHING)
        found[:, depth] = node
    return found


def by_category(replayed: Replay) -> dict[str, Replay]:
    """Return the replay of each category; an empty dict if texts ran in batches, which mix categories."""
    texts = replayed.trace.texts
    if any(len(batch) > 1 for batch in batches(replayed.trace).values()):
        return {}
    parts: dict[str, list[int]] = {}
    for number, text in enumerate(texts):
        parts.setdefault(text.category, []).append(number)
    return {
        category: replace(
            replayed,
            trace=replace(replayed.trace, texts=[texts[i] for i in part]),
            steps=replayed.steps[part],
            tokens=replayed.tokens[part],
            nodes=[replayed.nodes[i] for i in part],
        )
        for category, part in parts.items()
    }


def times(replayed: Replay, costs: Costs) -> Times:
    """Return the times of every batch of the trace. The context of a batch is taken to be its mean over the run."""
    trace = replayed.trace
    tokens, seconds, plain, prompts = [], [], [], []
    for (key, batch), nodes in zip(batches(trace).items(), replayed.nodes, strict=True):
        rows, longest = len(batch), max(trace.texts[i].positions for i in batch)
        context = round(sum(trace.texts[i].prompt_tokens + trace.texts[i].positions / 2 for i in batch) / rows)
        prompt = costs.prompt.get(key, 0.0)
        sizes, counts = np.unique(nodes.max(1) if costs.padded else nodes.mean(1), return_counts=True)
        spent = prompt
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            draft = costs.draft.seconds(replayed.levels or [math.ceil(size)], rows, context)
            spent += count * (_between(costs.verify, size + 1, rows, context) + draft + costs.step)
        # expected steps are no whole number: scale the time of the whole steps
        part = max(replayed.steps[batch]) / len(nodes) if not replayed.exact and len(nodes) else 1.0
        seconds.append(prompt + (spent - prompt) * part)
        prompts.append(prompt)
        plain.append(prompt + longest * costs.verify.seconds(1, rows, context))
        tokens.append(sum(len(trace.texts[i].tokens) for i in batch))
    return Times(np.array(tokens, dtype=float), np.array(seconds), np.array(plain), np.array(prompts))


def _between(curve: CostCurve, nodes: float, batch: int, context: int) -> float:
    """Return the seconds of a forward at a fractional number of nodes, by linear interpolation.

    Arguments as in `CostCurve.seconds`; `nodes` is a mean over rows.
    """
    share = nodes - (fewer := math.floor(nodes))
    seconds = curve.seconds(fewer, batch, context)
    return seconds + share * (curve.seconds(fewer + 1, batch, context) - seconds) if share else seconds


def right_ranks(trace: Trace) -> Array:
    """Return `TextTrace.right` of all texts together, [positions depths], for statistics and for choosing trees.

    Raises:
        InputError: the drafter does not rank candidates.
    """
    if not trace.ranked:
        fix = "replay it with tree=NODES"
        expected = "a drafter that records ranked candidates at every depth (such as medusa)"
        raise InputError("tree", expected=expected, got=trace.origin.drafter, fix=fix)
    return np.concatenate([text.right for text in trace.texts])


def _checked(trace: Trace, tree: Topology | int | None, temperature: float) -> Topology | int:
    origin = trace.origin
    if temperature < 0:
        raise InputError(
            "temperature", expected="a number >= 0", got=repr(temperature), fix="use 0 for greedy decoding"
        )
    if trace.ranked:
        if tree is None and origin.tree is not None:
            tree = Topology.of(origin.tree)
        if not isinstance(tree, Topology):
            raise InputError(
                "tree", expected=f"index paths: {origin.drafter} records ranked candidates", got=tree, fix="name a tree"
            )
        if tree.depth > origin.depths or tree.ranks > origin.ranks:
            expected = f"at most {origin.depths} deep and {origin.ranks} candidates wide, as was recorded"
            got, fix = f"{tree.depth} deep and {tree.ranks} wide", "prune it, or record with more record_ranks"
            raise InputError("tree", expected=expected, got=got, fix=fix)
        return tree
    if temperature > 0:
        fix = "use temperature=0"
        expected = f"0: {origin.drafter} records no ranked candidates, so only its greedy texts can be replayed"
        raise InputError("temperature", expected=expected, got=temperature, fix=fix)
    most = max(text.nodes.shape[1] for text in trace.texts if text.nodes is not None)
    if isinstance(tree, Topology):
        expected = f"a number of nodes, or nothing: {origin.drafter} draws its own trees"
        raise InputError("tree", expected=expected, got="index paths", fix="name a number")
    if tree is None:
        return most
    if tree < 1:
        raise InputError("tree", expected="at least one node", got=repr(tree), fix="raise it")
    return tree


def _children(tree: Topology) -> Array:
    """Return the index of each child node, [nodes ranks]; -1 if the tree has no such child."""
    child = np.full((tree.nodes, tree.ranks), -1)
    for number, (path, parent) in enumerate(zip(tree.paths, tree.parents.tolist()[1:], strict=True), 1):
        child[parent, path[-1]] = number
    return child


def _walk(text: TextTrace, count: Array) -> Array:
    """Return the positions at which steps begin. A step emits the accepted tokens and one more.

    Args:
        text: the text.
        count: number of accepted tokens of a step at each position, [positions].
    """
    jumps, at, roots = (count + 1).tolist(), 0, []
    while at < text.positions:
        roots.append(at)
        at += jumps[at]
    return np.array(roots, dtype=np.int64)


def _nodes(text: TextTrace, tree: Topology | int) -> Array:
    """Return the number of drafted nodes at each position."""
    if isinstance(tree, Topology):
        return np.full(text.positions, tree.nodes - 1)
    assert text.nodes is not None
    return np.minimum((text.nodes >= 0).sum(1), tree)


def _levels(tree: Topology | int) -> list[int]:
    """Return the number of nodes at each depth of a static tree; empty for other trees."""
    if isinstance(tree, int):
        return []
    return [len(list(group)) for _, group in groupby(tree.paths, key=len)]


def batches(trace: Trace) -> dict[BatchKey, list[int]]:
    """Return the indices of the texts in each batch."""
    together: dict[BatchKey, list[int]] = {}
    for number, text in enumerate(trace.texts):
        together.setdefault((text.repeat, text.batch, text.turn), []).append(number)
    return together


def _by_step(trace: Trace, nodes: Sequence[Array]) -> list[Array]:
    """Return for each batch the drafted nodes in each step, [steps rows]; 0 after the end of a text."""
    found = []
    for batch in batches(trace).values():
        steps = np.zeros((max(len(nodes[i]) for i in batch), len(batch)), dtype=np.int64)
        for row, i in enumerate(batch):
            steps[: len(nodes[i]), row] = nodes[i]
        found.append(steps)
    return found


# ---- at a temperature ---------------------------------------------------------------------------------------------


def _expected(trace: Trace, tree: Topology, temperature: float) -> Replay:
    """Return the expected steps at a temperature > 0.

    Each position of the recorded text is the start of a step with some probability. The rule accepts a child with the
    target's probability of it, in the recorded context (children by rank: arXiv 2305.09781).
    """
    steps, nodes = [], []
    for text in trace.texts:
        share = _length_shares(text, tree, temperature, trace.origin.vocabulary)
        reached = np.zeros(text.positions + tree.depth + 1)
        reached[0] = 1.0
        for at in range(text.positions):
            reached[at + 1 : at + 2 + tree.depth] += reached[at] * share[at]
        steps.append(float(reached[: text.positions].sum()))
        nodes.append(np.full(int(np.ceil(steps[-1])), tree.nodes - 1))
    tokens = np.array([text.positions for text in trace.texts])
    return Replay(trace, np.array(steps), tokens, _by_step(trace, nodes), _levels(tree), exact=False)


def _length_shares(text: TextTrace, tree: Topology, temperature: float, vocabulary: int) -> Array:
    """Return P(exactly d drafted tokens are accepted) for a tree rooted at each position, [positions depth + 1].

    Arguments as in `_expected`; `vocabulary` is the number of tokens.
    """
    right = candidate_probabilities(text, temperature, vocabulary)[:, : tree.depth, : tree.ranks]
    reach = np.ones((text.positions, tree.nodes))
    at_depth = np.zeros((text.positions, tree.depth + 2))
    at_depth[:, 0] = 1.0
    for number, (path, parent) in enumerate(zip(tree.paths, tree.parents.tolist()[1:], strict=True), 1):
        reach[:, number] = reach[:, parent] * right[:, len(path) - 1, path[-1]]
        at_depth[:, len(path)] += reach[:, number]
    return at_depth[:, :-1] - at_depth[:, 1:]


def candidate_probabilities(text: TextTrace, temperature: float, vocabulary: int) -> Array:
    """Return the target's probability of each candidate in the recorded context, [positions depths ranks].

    The trace holds the target's most probable tokens only. The remaining probability is spread evenly over all other
    tokens. Candidates among those, and candidates past the end of the text, get probability 0.

    Args:
        text: the text.
        temperature: temperature, > 0.
        vocabulary: number of tokens.
    """
    assert text.ids is not None
    known = text.target_logp.astype(np.float64)
    others = vocabulary - known.shape[1]
    left = np.clip(1 - np.exp(known).sum(1), 0, 1) / max(others, 1)
    most = known.max(1, keepdims=True)
    scaled = np.exp((known - most) / temperature)  # relative to the maximum, to avoid underflow at low temperatures
    rest = others * (left / np.exp(most[:, 0])) ** (1 / temperature)
    share = scaled / (scaled.sum(1) + rest)[:, None]
    out = np.zeros_like(text.ids, dtype=np.float64)
    for depth in range(out.shape[1]):
        ahead = np.arange(text.positions) + depth
        there = ahead < text.positions
        at = ahead[there]
        same = np.equal(text.ids[there, depth][:, :, np.newaxis], text.target_ids[at][:, np.newaxis, :])
        out[there, depth] = (same * share[at][:, None, :]).sum(-1)
    return out
