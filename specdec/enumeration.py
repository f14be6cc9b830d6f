"""Every random outcome of drafting and accepting, with its probability, through the code of the rules.

`Enumeration` implements the Draws protocol for a batch whose rows are outcomes: a row follows the script of
the decisions it was given, takes the first possible outcome of any other decision, and leaves behind a script
for each outcome it did not take. Running until no script is left visits every outcome once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.drafting import TreeShape
from specdec.protocols import AcceptanceRule
from specdec.sampling import Draws, draw_without_replacement
from specdec.tree import PAD, TokenTree

OPEN = -1


@dataclass
class Enumeration:
    """Draws of rows that follow `script` [rows slots]; `weight`: the probability of what each has done so far."""

    script: Tensor
    weight: Tensor
    forks: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # row, its script

    def __post_init__(self) -> None:
        self._taken = torch.full_like(self.script, OPEN)

    def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
        assert ((probs >= 0) & (probs <= 1)).all()
        return self._decide(torch.stack([1 - probs, probs], 1), slot).bool()

    def categorical(self, probs: Tensor, slot: int) -> Tensor:
        assert (probs >= 0).all()
        return self._decide(probs / probs.sum(-1, keepdim=True), slot)

    def _decide(self, probs: Tensor, slot: int) -> Tensor:
        assert probs.dtype == torch.float64
        scripted, possible = self.script[:, slot], probs > 0
        open_ = possible.sum(-1) > 1  # otherwise nothing is decided
        assert (self._taken[open_, slot] == OPEN).all(), f"slot {slot} decides twice"
        taken = torch.where(open_ & (scripted != OPEN), scripted, possible.int().argmax(-1))
        self.weight = self.weight * probs.gather(1, taken[:, None])[:, 0]
        others = possible & (open_ & (scripted == OPEN))[:, None]
        row, outcome = others.scatter(1, taken[:, None], False).nonzero(as_tuple=True)
        history = self._taken[row].clone()
        history[:, slot] = outcome
        self.forks.append((row, history))
        self._taken[:, slot] = torch.where(open_, taken, self._taken[:, slot])
        return taken


def every_outcome(
    run: Callable[[Draws, Tensor], tuple[Tensor, ...]], starts: int, slots: int, weight: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run for every outcome of its draws from each of `starts` starts. `run(draws, start)` gets the start of each
    row and returns tensors, one entry per row. Returns their starts, weights and tensors."""
    start, script = torch.arange(starts), torch.full((starts, slots), OPEN)
    found: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []
    while len(start):
        draws = Enumeration(script, weight[start])
        result = run(draws, start)
        found.append((start, draws.weight, result))
        script = torch.cat([script[:0], *(history for _, history in draws.forks)])
        start = torch.cat([start[:0], *(start[row] for row, _ in draws.forks)])
    results = [torch.cat(column) for column in zip(*(result for _, _, result in found), strict=True)]
    return torch.cat([s for s, _, _ in found]), torch.cat([w for _, w, _ in found]), results


@dataclass(frozen=True)
class Tables:
    """p(.|prefix) or q(.|prefix): `levels[d]` [vocab^d vocab] for the prefixes of length d, read as numbers."""

    levels: list[Tensor]

    @property
    def vocab(self) -> int:
        return self.levels[0].shape[-1]

    def after(self, prefix: Tensor, depth: int) -> Tensor:
        return self.levels[depth][prefix]

    def joint(self) -> Tensor:
        """The distribution of the first len(levels) tokens."""
        joint = torch.ones(1, dtype=torch.float64)
        for level in self.levels:
            joint = (joint[:, None] * level).reshape(-1)
        return joint


def outcomes(widths: Sequence[int], vocab: int) -> int:
    """How many different trees of that shape there are at most."""
    return vocab ** (len(shape_of(widths)) - 1)


def shape_of(widths: Sequence[int]) -> list[int]:
    """Parents of the tree with that many children per node at each depth, level by level."""
    parents: list[int] = TreeShape(widths, "top_k").parents.tolist()
    return parents


def draft(parents: Sequence[int], q: Tables, how: str, draws: Draws, rows: int) -> TokenTree:
    """A tree of that shape, its tokens drawn from q or (how="top_k") the most likely ones; root token 0."""
    nodes, depth, prefix = len(parents), [0], [torch.zeros(rows, dtype=torch.long)]
    tokens = [torch.zeros(rows, dtype=torch.long)] * nodes
    for parent in range(nodes):
        children = [i for i in range(nodes) if parents[i] == parent]
        if not children:
            continue
        q_here = q.after(prefix[parent].clamp(min=0), depth[parent])
        if how == "top_k":
            drawn = q_here.topk(len(children), -1).indices
        elif how == "without_replacement":
            drawn = draw_without_replacement(q_here, len(children), draws, children[0])
        else:
            drawn = torch.stack([draws.categorical(q_here, child) for child in children], 1)
        for child, token in zip(children, drawn.unbind(1), strict=True):
            gone = (token == PAD) | (tokens[parent] == PAD)
            tokens[child] = torch.where(gone, PAD, token)
            depth.append(depth[parent] + 1)
            prefix.append(torch.where(gone, 0, prefix[parent] * q.vocab + token))
    stacked = torch.stack(tokens, 1)
    tree_parents = torch.where(stacked == PAD, PAD, torch.tensor(parents))
    if how == "top_k":
        return TokenTree(stacked, tree_parents)
    probs = torch.stack(
        [
            q.after(prefix[i], min(depth[i], len(q.levels) - 1))
            if depth[i] < len(q.levels)
            else torch.zeros(rows, q.vocab, dtype=torch.float64)
            for i in range(nodes)
        ],
        1,
    )
    return TokenTree(stacked, tree_parents, probs, replacement=how == "with_replacement")


def scored(tree: TokenTree, parents: Sequence[int], p: Tables) -> Tensor:
    """p after every node."""
    depth, prefix, probs = [0], [torch.zeros(tree.batch, dtype=torch.long)], []
    for node, parent in enumerate(parents):
        if node:
            depth.append(depth[parent] + 1)
            prefix.append(prefix[parent] * p.vocab + tree.tokens[:, node].clamp(min=0))
        probs.append(p.after(prefix[node], depth[node]))
    return torch.stack(probs, 1)


@dataclass(frozen=True)
class Emission:
    """joint: distribution of the first len(p.levels) tokens of the text; accepted: expected length; outcomes: how
    many were enumerated."""

    joint: Tensor
    accepted: float
    outcomes: int


def emission(rule: AcceptanceRule, widths: Sequence[int], p: Tables, q: Tables, how: str) -> Emission:
    """What a step of the rule emits over all outcomes; each block is completed with tokens of the target."""
    parents = shape_of(widths)

    def drafted(draws: Draws, start: Tensor) -> tuple[Tensor, ...]:
        tree = draft(parents, q, how, draws, len(start))
        return tree.tokens, tree.parents, torch.empty(len(start), 0) if tree.probs is None else tree.probs

    one = torch.ones(1, dtype=torch.float64)
    _, weight, (tokens, tree_parents, probs) = every_outcome(drafted, 1, len(parents), one)
    assert abs(float(weight.sum()) - 1) < 1e-12

    def accepted(draws: Draws, start: Tensor) -> tuple[Tensor, ...]:
        q_rows = None if how == "top_k" else probs[start]
        tree = TokenTree(tokens[start], tree_parents[start], q_rows, replacement=how != "without_replacement")
        verdict = rule.accept(tree, scored(tree, parents, p), draws)
        return tree.tokens.gather(1, verdict.path.clamp(min=0)), verdict.path, verdict.next_token

    _, weight, (on_path, path, following) = every_outcome(accepted, len(weight), len(parents), weight)
    assert abs(float(weight.sum()) - 1) < 1e-12
    lengths = (path >= 0).sum(-1) - 1
    joint = torch.zeros(p.vocab ** len(p.levels), dtype=torch.float64)
    for length in lengths.unique().tolist():
        rows = lengths == length
        text = torch.cat([on_path[rows, 1 : length + 1], following[rows, None]], 1)
        prefix = torch.zeros(len(text), dtype=torch.long)
        for token in text.unbind(1):
            prefix = prefix * p.vocab + token
        mass = torch.zeros(p.vocab ** (length + 1), dtype=torch.float64).index_add_(0, prefix, weight[rows])
        for level in p.levels[length + 1 :]:
            mass = (mass[:, None] * level).reshape(-1)
        joint += mass
    return Emission(joint, float((weight * lengths).sum()), len(weight))
