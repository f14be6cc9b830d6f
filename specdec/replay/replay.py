"""Replaying a trace with another tree, without a model: steps, tokens per step, and how long it would take.

Greedy, a replay is exact: the right tokens are known at every position, and a tree accepts the longest of its paths
that is right. At a temperature it is not: after a token that the recorded text does not have, nothing is known. It is
then taken that things go on there as they do in the recorded text, and steps are expectations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from specdec.errors import InputError
from specdec.hardware.curves import CostCurve, DraftCost
from specdec.metrics import Interval, bootstrap_speedup, bootstrap_tau
from specdec.replay.trace import NOTHING, Array, TextTrace, Trace
from specdec.trees.topology import Topology

BatchKey = tuple[int, int, int]  # repeat, number of the batch, turn


@dataclass(frozen=True)
class Replay:
    """steps, tokens: of each text (the first token of a text belongs to no step). nodes: drafted in each step of each
    batch [steps rows], 0 where a text has ended; levels: of a static tree, its nodes at each depth; exact: whether
    a run would make these very steps.
    """

    trace: Trace
    steps: Array
    tokens: Array
    nodes: Sequence[Array]
    levels: Sequence[int]
    exact: bool

    @property
    def tau(self) -> tuple[float, Interval | None]:
        """Tokens per step, and its 95 % interval over prompts."""
        names = [text.prompt for text in self.trace.texts]
        grouped = {name: [0.0, 0.0] for name in names}
        for name, steps, tokens in zip(names, self.steps, self.tokens, strict=True):
            grouped[name][0] += tokens
            grouped[name][1] += steps
        emitted, steps = zip(*grouped.values(), strict=True)
        return bootstrap_tau(emitted, steps)

    @property
    def nodes_per_step(self) -> float:
        """Drafted nodes of a row in a step; of a static tree its size, also where steps are expectations."""
        if self.levels:
            return float(sum(self.levels))
        return float(sum(nodes.sum() for nodes in self.nodes) / self.steps.sum())

    @property
    def forwards(self) -> float:
        """Steps that batches take together: as many as their longest row."""
        return float(sum(max(self.steps[batch]) for batch in batches(self.trace).values()))


@dataclass(frozen=True)
class Fixed:
    """A `CostCurve` that was measured as a whole: the same for all nodes."""

    time: float

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return self.time


@dataclass(frozen=True)
class Costs:
    """verify, draft: see `CostCurve` and `DraftCost`; step: what a step takes besides (accepting, committing), plain
    decoding nothing; prompt: seconds of reading the prompts of a batch, for the keys of `batches`; padded: a forward
    takes as long as if every row had as many nodes as the widest, and not what their sum needs."""

    verify: CostCurve
    draft: DraftCost = field(default_factory=DraftCost)
    step: float = 0.0
    prompt: Mapping[BatchKey, float] = field(default_factory=dict)
    padded: bool = True


@dataclass(frozen=True)
class Times:
    """Predicted seconds of each batch, drafting and plain, prompts included; and prompts alone."""

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
        """The interval is that of the prompts; it knows nothing of errors in the costs."""
        tokens = self.tokens.tolist()
        return bootstrap_speedup(tokens, self.seconds.tolist(), tokens, self.plain.tolist())


def replay(trace: Trace, tree: Topology | int | None, temperature: float | None = None) -> Replay:
    """tree: of a drafter that ranks, index paths; of any other, how many nodes of the recorded trees, or None for all.
    temperature: None for that of the run; above 0, children are chosen by rank and the rule is exact.

    Raises:
        InputError: a tree that the trace does not tell about, or a temperature it cannot be replayed at.
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
    """Drafted tokens that are right [positions], for a tree rooted at each."""
    return (right_nodes(text, tree) != NOTHING).sum(1)


def right_nodes(text: TextTrace, tree: Topology | int) -> Array:
    """The nodes that are right [positions depths], for a tree rooted at each; -1 from the first depth that has none."""
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
    """Where texts ran alone, each category's part; nothing where they ran in batches."""
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
    """Seconds of every batch of the trace. Contexts grow with the text: of each batch the mean is taken."""
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
        # where steps are expectations, the last one is made in part
        part = max(replayed.steps[batch]) / len(nodes) if not replayed.exact and len(nodes) else 1.0
        seconds.append(prompt + (spent - prompt) * part)
        prompts.append(prompt)
        plain.append(prompt + longest * costs.verify.seconds(1, rows, context))
        tokens.append(sum(len(trace.texts[i].tokens) for i in batch))
    return Times(np.array(tokens, dtype=float), np.array(seconds), np.array(plain), np.array(prompts))


def _between(curve: CostCurve, nodes: float, batch: int, context: int) -> float:
    """At a number of nodes that is a mean over rows."""
    share = nodes - (fewer := math.floor(nodes))
    seconds = curve.seconds(fewer, batch, context)
    return seconds + share * (curve.seconds(fewer + 1, batch, context) - seconds) if share else seconds


def right_ranks(trace: Trace) -> Array:
    """[positions depths] of all texts together: what statistics and trees are made of.

    Raises:
        InputError: a drafter that does not rank.
    """
    if not trace.ranked:
        fix = "replay it with tree=NODES"
        raise InputError("tree", expected="a drafter with ranked candidates", got=trace.origin.drafter, fix=fix)
    return np.concatenate([text.right for text in trace.texts])


def _checked(trace: Trace, tree: Topology | int | None, temperature: float) -> Topology | int:
    origin = trace.origin
    if temperature < 0:
        raise InputError("temperature", expected="a number >= 0", got=temperature, fix="use 0 for greedy decoding")
    if trace.ranked:
        if tree is None and origin.tree is not None:
            tree = Topology.of(origin.tree)
        if not isinstance(tree, Topology):
            raise InputError("tree", expected="index paths, for a drafter that ranks", got=tree, fix="name a tree")
        if tree.depth > origin.depths or tree.ranks > origin.ranks:
            expected = f"at most {origin.depths} deep and {origin.ranks} candidates wide, as was recorded"
            got, fix = f"{tree.depth} deep and {tree.ranks} wide", "prune it, or record with more record_ranks"
            raise InputError("tree", expected=expected, got=got, fix=fix)
        return tree
    if temperature > 0:
        fix = "use temperature=0"
        raise InputError("temperature", expected=f"0: {origin.drafter} does not rank", got=temperature, fix=fix)
    most = max(text.nodes.shape[1] for text in trace.texts if text.nodes is not None)
    if isinstance(tree, Topology):
        expected = f"a number of nodes, or nothing: {origin.drafter} draws its own trees"
        raise InputError("tree", expected=expected, got="index paths", fix="name a number")
    if tree is None:
        return most
    if tree < 1:
        raise InputError("tree", expected="at least one node", got=tree, fix="raise it")
    return tree


def _children(tree: Topology) -> Array:
    """[nodes ranks]: the number of each child, -1 where there is none."""
    child = np.full((tree.nodes, tree.ranks), -1)
    for number, (path, parent) in enumerate(zip(tree.paths, tree.parents.tolist()[1:], strict=True), 1):
        child[parent, path[-1]] = number
    return child


def _walk(text: TextTrace, count: Array) -> Array:
    """The positions at which a step begins. A step emits what was accepted and one token more."""
    jumps, at, roots = (count + 1).tolist(), 0, []
    while at < text.positions:
        roots.append(at)
        at += jumps[at]
    return np.array(roots, dtype=np.int64)


def _nodes(text: TextTrace, tree: Topology | int) -> Array:
    """Drafted at each root."""
    if isinstance(tree, Topology):
        return np.full(text.positions, tree.nodes - 1)
    assert text.nodes is not None
    return np.minimum((text.nodes >= 0).sum(1), tree)


def _levels(tree: Topology | int) -> list[int]:
    """Nodes at each depth, where every step has the same."""
    if isinstance(tree, int):
        return []
    return [len(list(group)) for _, group in groupby(tree.paths, key=len)]


def batches(trace: Trace) -> dict[BatchKey, list[int]]:
    """Which texts ran together, as numbers."""
    together: dict[BatchKey, list[int]] = {}
    for number, text in enumerate(trace.texts):
        together.setdefault((text.repeat, text.batch, text.turn), []).append(number)
    return together


def _by_step(trace: Trace, nodes: Sequence[Array]) -> list[Array]:
    """Of each batch, the nodes of every text in every step [steps rows]; none where a text has ended."""
    found = []
    for batch in batches(trace).values():
        steps = np.zeros((max(len(nodes[i]) for i in batch), len(batch)), dtype=np.int64)
        for row, i in enumerate(batch):
            steps[: len(nodes[i]), row] = nodes[i]
        found.append(steps)
    return found


# ---- at a temperature ---------------------------------------------------------------------------------------------


def _expected(trace: Trace, tree: Topology, temperature: float) -> Replay:
    """A chain of steps along the recorded text, in which each place is reached with some probability. The rule keeps a
    child with the probability the target gives it (children by rank: arXiv 2305.09781), in the recorded context."""
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
    """P(exactly d drafted tokens are accepted) [positions depth + 1]."""
    right = candidate_probabilities(text, temperature, vocabulary)[:, : tree.depth, : tree.ranks]
    reach = np.ones((text.positions, tree.nodes))
    at_depth = np.zeros((text.positions, tree.depth + 2))
    at_depth[:, 0] = 1.0
    for number, (path, parent) in enumerate(zip(tree.paths, tree.parents.tolist()[1:], strict=True), 1):
        reach[:, number] = reach[:, parent] * right[:, len(path) - 1, path[-1]]
        at_depth[:, len(path)] += reach[:, number]
    return at_depth[:, :-1] - at_depth[:, 1:]


def candidate_probabilities(text: TextTrace, temperature: float, vocabulary: int) -> Array:
    """What the target gives each candidate [positions depths ranks], in the context that the recorded text has there.
    Of its distribution the likeliest tokens are known; what is left is spread evenly over all others, and a candidate
    among these counts as never right. Nor is one behind the end of the text."""
    assert text.ids is not None
    known = text.target_logp.astype(np.float64)
    others = vocabulary - known.shape[1]
    left = np.clip(1 - np.exp(known).sum(1), 0, 1) / max(others, 1)
    most = known.max(1, keepdims=True)
    scaled = np.exp((known - most) / temperature)  # nothing vanishes at a low temperature
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
