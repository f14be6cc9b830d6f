"""Every random outcome of drafting and accepting, with its probability, through the code of the rules.

`Enumeration` makes the random decisions of a batch in which each row is one outcome. A row first follows the script of
decisions it was given. At any further decision it takes the first possible outcome, and leaves a new script for each of
the others. Running until no script is left visits every outcome once. With two decisions A and B that are 0 or 1:

    run   row follows   row takes     leaves
    1     nothing       A=0  B=0      A=1,  A=0 B=1
    2     A=1           B=0           A=1 B=1
          A=0 B=1
    3     A=1 B=1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec.decoding.grow_fixed import TreeShape
from specdec.decoding.protocols import AcceptanceRule, Verdict
from specdec.decoding.sampling import Draws, draw_without_replacement
from specdec.errors import InputError
from specdec.trees.tree import PAD, TokenTree

OPEN = -1  # a decision that a script leaves open


class Forks(NamedTuple):
    """Outcomes that were not taken.

    Args:
        row: the row that each belongs to.
        script: its script, [forks addresses].
        weight: its probability.
    """

    row: Tensor
    script: Tensor
    weight: Tensor


@dataclass
class Enumeration:
    """The decisions of rows that follow a script.

    Args:
        script: the outcome at each address, -1 if it is open, [rows addresses].
        weight: probability of the decisions each row has made so far, [rows].
        forks: outcomes that were not taken.
        precise: whether all probabilities were given in float64.
    """

    script: Tensor
    weight: Tensor
    forks: list[Forks] = field(default_factory=list)
    precise: bool = True

    def __post_init__(self) -> None:
        self._taken = torch.full_like(self.script, OPEN)

    @classmethod
    def begin(cls, rows: int, addresses: int) -> Enumeration:
        """Return an enumeration in which nothing is decided yet."""
        return cls(torch.full((rows, addresses), OPEN), torch.ones(rows, dtype=torch.float64))

    def decide(self, probs: Tensor, address: Tensor, live: Tensor) -> Tensor:
        """Make one decision in every live row.

        Args:
            probs: possibly unnormalised probabilities of the outcomes, [rows outcomes].
            address: number of this decision in its row, [rows].
            live: rows whose decisions count, [rows]; the others fork nothing.

        Returns:
            The outcome of each row.

        Raises:
            InputError: no distribution, a second decision at an address, or probabilities that differ from those when
                the script was made.
        """
        self.precise &= probs.dtype == torch.float64
        probs, place = probs.double(), address[:, None]
        total = probs.sum(-1, keepdim=True)
        if bool((live & ~((probs >= 0).all(-1) & (total[:, 0] > 0) & total[:, 0].isfinite())).any()):
            fix = "clamp what rounding leaves below 0"
            raise InputError("draws", expected="probabilities >= 0 with a sum above 0", got="others", fix=fix)
        possible = probs > 0
        open_ = live & (possible.sum(-1) > 1)  # with one possible outcome there is nothing to decide
        if bool((open_ & (self._taken.gather(1, place)[:, 0] != OPEN)).any()):
            fix = "give every node a slot of its own, and draw children from state.draws(...)"
            expected = "one decision for each slot, by the drafter or by the rule"
            raise InputError("draws", expected=expected, got="a second one in a step", fix=fix)
        scripted = self.script.gather(1, place)[:, 0]
        follows = open_ & (scripted != OPEN)
        within = scripted.clamp(min=0, max=probs.shape[1] - 1)
        if bool((follows & ~(possible.gather(1, within[:, None])[:, 0] & (within == scripted))).any()):
            raise InputError(
                "draws",
                expected="trees and verdicts that are functions of the text and of the draws",
                got="other probabilities when the same outcomes were drawn again",
                fix="draw from state.draws(...) and from the rule's draws only",
            )
        taken = torch.where(follows, within, possible.int().argmax(-1))
        chances = self.weight[:, None] * (probs / total)
        self._fork(possible & (open_ & ~follows)[:, None], taken, place, chances)
        self.weight = torch.where(open_ & ~follows, chances.gather(1, taken[:, None])[:, 0], self.weight)
        self._taken = torch.where(open_[:, None], self._taken.scatter(1, place, taken[:, None]), self._taken)
        return taken

    def _fork(self, possible: Tensor, taken: Tensor, place: Tensor, chances: Tensor) -> None:
        row, outcome = possible.scatter(1, taken[:, None], False).nonzero(as_tuple=True)
        script = torch.where(self._taken[row] != OPEN, self._taken[row], self.script[row])
        script.scatter_(1, place[row], outcome[:, None])
        self.forks.append(Forks(row, script, chances[row, outcome]))

    def adopt(self, row: int, alone: Enumeration) -> None:
        """Replace a row by the only row of another enumeration."""
        self.forks += [Forks(fork.row + row, fork.script, fork.weight) for fork in alone.forks]
        self.weight[row] = alone.weight[0]
        self.precise &= alone.precise

    def left(self) -> Forks:
        """Return all outcomes that were not taken."""
        nothing = Forks(torch.zeros(0, dtype=torch.long), self.script[:0], self.weight[:0])
        return Forks(*map(torch.cat, zip(nothing, *self.forks, strict=True)))


@dataclass
class EnumeratedDraws:
    """The `Draws` protocol over an enumeration.

    Args:
        enumeration: makes the decisions.
        first: address of slot 0 in each row, [rows].
        slots: number of slots.
        live: rows whose decisions count, [rows].
    """

    enumeration: Enumeration
    first: Tensor
    slots: int
    live: Tensor

    @classmethod
    def of(cls, enumeration: Enumeration) -> EnumeratedDraws:
        """Return the draws of a single step, in which a slot is an address."""
        rows, slots = enumeration.script.shape
        return cls(enumeration, torch.zeros(rows, dtype=torch.long), slots, torch.ones(rows, dtype=torch.bool))

    def bernoulli(self, probs: Tensor, slot: int) -> Tensor:
        if not bool(((probs >= 0) & (probs <= 1)).all()):
            got = f"{float(probs.min()):.4g} to {float(probs.max()):.4g} at slot {slot}"
            raise InputError("draws.bernoulli", expected="probabilities in [0, 1]", got=got, fix="clamp them")
        return self.categorical(torch.stack([1 - probs, probs], 1), slot).bool()

    def categorical(self, probs: Tensor, slot: int) -> Tensor:
        if not 0 <= slot < self.slots:
            expected, fix = f"a slot below {self.slots}, one for each node", "use the node's number as its slot"
            raise InputError("draws", expected=expected, got=slot, fix=fix)
        return self.enumeration.decide(probs, self.first + slot, self.live)


def every_outcome(
    run: Callable[[Draws, Tensor], tuple[Tensor, ...]], starts: int, slots: int, weight: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Run for every outcome of the draws, from each of `starts` starts.

    Args:
        run: gets draws and the start of each row [rows], and returns tensors with one entry per row.
        starts: number of starts.
        slots: slots of the draws.
        weight: probability of each start, [starts].

    Returns:
        Start, weight and tensors of every outcome.
    """
    start, script = torch.arange(starts), torch.full((starts, slots), OPEN)
    found: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []
    while len(start):
        enumeration = Enumeration(script, weight)
        result = run(EnumeratedDraws.of(enumeration), start)
        found.append((start, enumeration.weight, result))
        row, script, weight = enumeration.left()
        start = start[row]
    results = [torch.cat(column) for column in zip(*(result for _, _, result in found), strict=True)]
    return torch.cat([s for s, _, _ in found]), torch.cat([w for _, w, _ in found]), results


@dataclass(frozen=True)
class Tables:
    """p(.|prefix) or q(.|prefix).

    levels: `levels[d]` [vocab^d vocab] holds the distributions after the prefixes of length d. Its rows are indexed by
    the prefix, read as a number with digits of base `vocab`.
    """

    levels: list[Tensor]

    @property
    def vocab(self) -> int:
        return self.levels[0].shape[-1]

    def after(self, prefix: Tensor, depth: int) -> Tensor:
        return self.levels[depth][prefix]

    def joint(self) -> Tensor:
        """Return the distribution of the first len(levels) tokens."""
        joint = torch.ones(1, dtype=torch.float64)
        for level in self.levels:
            joint = (joint[:, None] * level).reshape(-1)
        return joint


def outcomes(widths: Sequence[int], vocab: int) -> int:
    """Return the largest possible number of different trees of that shape."""
    return vocab ** (len(shape_of(widths)) - 1)


def shape_of(widths: Sequence[int]) -> list[int]:
    """Return the parents of the tree with that many children per node at each depth, level by level."""
    parents: list[int] = TreeShape(widths, "top_k").parents.tolist()
    return parents


def draft(parents: Sequence[int], q: Tables, how: str, draws: Draws, rows: int) -> TokenTree:
    """Draft a tree of one shape for each row, with root token 0.

    Args:
        parents: parents of the nodes, level by level.
        q: the drafter's distributions.
        how: how children are chosen: drawn from q, or its most likely tokens (`top_k`).
        draws: random draws.
        rows: number of rows.
    """
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
    """Return p after every node."""
    depth, prefix, probs = [0], [torch.zeros(tree.batch, dtype=torch.long)], []
    for node, parent in enumerate(parents):
        if node:
            depth.append(depth[parent] + 1)
            prefix.append(prefix[parent] * p.vocab + tree.tokens[:, node].clamp(min=0))
        probs.append(p.after(prefix[node], depth[node]))
    return torch.stack(probs, 1)


@dataclass(frozen=True)
class Emission:
    """The text that one step of a rule emits.

    Args:
        joint: distribution of the first len(p.levels) tokens.
        accepted: expected number of accepted tokens.
        outcomes: number of enumerated outcomes.
    """

    joint: Tensor
    accepted: float
    outcomes: int


def emission(rule: AcceptanceRule, widths: Sequence[int], p: Tables, q: Tables, how: str) -> Emission:
    """Enumerate the tokens that one step of a rule emits, and complete each block with tokens of the target.

    Args:
        rule: the rule under test.
        widths: children per node at each depth.
        p: the target's distributions, one level more than the tree has.
        q: the drafter's distributions.
        how: how children are chosen, one of `specdec.decoding.grow_fixed.CHILDREN`.

    Raises:
        InputError: decisions or a verdict that no rule may make.
    """
    return blocks_of(rule, shape_of(widths), p, q, how).completed(p)


@dataclass(frozen=True)
class Blocks:
    """Every block of tokens that one step can emit.

    Args:
        texts: per length, the tokens of each outcome, [outcomes length].
        weights: per length, the probability of each outcome, [outcomes].
    """

    texts: list[Tensor]
    weights: list[Tensor]

    def completed(self, p: Tables) -> Emission:
        """Complete each block with tokens of the target to len(p.levels) tokens; longer ones are cut."""
        joint, most = torch.zeros(p.vocab ** len(p.levels), dtype=torch.float64), len(p.levels)
        for text, weight in zip(self.texts, self.weights, strict=True):
            prefix = torch.zeros(len(text), dtype=torch.long)
            for token in text[:, :most].unbind(1):
                prefix = prefix * p.vocab + token
            length = min(text.shape[1], most)
            mass = torch.zeros(p.vocab**length, dtype=torch.float64).index_add_(0, prefix, weight)
            for level in p.levels[length:]:
                mass = (mass[:, None] * level).reshape(-1)
            joint += mass
        accepted = sum(float(w.sum()) * (text.shape[1] - 1) for text, w in zip(self.texts, self.weights, strict=True))
        return Emission(joint, accepted, sum(map(len, self.weights)))


def blocks_of(rule: AcceptanceRule, parents: Sequence[int], p: Tables, q: Tables, how: str) -> Blocks:
    """Enumerate the blocks that one step of a rule emits.

    Args:
        rule: the rule under test.
        parents: parents of the tree's nodes, level by level.
        p, q, how: as in `emission`.

    Raises:
        InputError: decisions or a verdict that no rule may make.
    """

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
        require_path(rule, tree, verdict)
        return tree.tokens.gather(1, verdict.path.clamp(min=0)), verdict.path, verdict.next_token

    _, weight, (on_path, path, following) = every_outcome(accepted, len(weight), len(parents), weight)
    assert abs(float(weight.sum()) - 1) < 1e-12
    lengths, found = (path >= 0).sum(-1) - 1, Blocks([], [])
    for length in lengths.unique().tolist():
        rows = lengths == length
        found.texts.append(torch.cat([on_path[rows, 1 : length + 1], following[rows, None]], 1))
        found.weights.append(weight[rows])
    return found


def require_path(rule: AcceptanceRule, tree: TokenTree, verdict: Verdict) -> None:
    """Refuse a verdict whose path does not lead from the root down the tree, one child after the other.

    Raises:
        InputError: names the rule and the path.
    """
    length = (verdict.path >= 0).sum(1)
    last = verdict.path.gather(1, (length - 1).clamp(min=0)[:, None]).clamp(min=0)[:, 0]
    whole = F.pad(verdict.path, (0, tree.nodes - verdict.path.shape[1]), value=PAD)
    wrong = (whole != tree.path_to(last)).any(1) | ~tree.valid.gather(1, last[:, None])[:, 0]
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        got = f"path {verdict.path[row].tolist()} in a tree with parents {tree.parents[row].tolist()}"
        expected, fix = "a path from the root, padded with -1", "return tree.path_to(node)"
        raise InputError(f"acceptance={rule.name}", expected=expected, got=got, fix=fix)
