"""What a drafter, a verifier and an acceptance rule are, and the few types that pass between them.

One step of the loop:  tree = drafter.propose(state); scores = verifier.verify(tree, state.rows);
verdict = rule.accept(tree, scores.probs, draws); verifier.commit(verdict.path, counts).
At temperature 0 a lossless rule has one choice and is not asked (`generate.greedy_verdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.sampling import Draws, RandomStreams, SamplingParams, Streams
from specdec.errors import InputError
from specdec.model.runtime.vocabulary import argmaxes
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scores:
    """The target's scores for every node of a tree, or after every prompt.

    Args:
        logits: after each node, penalties included (`SamplingParams.scores`), fp32 or more, [batch nodes vocab].
        hidden: the target's last hidden states of every token read, [batch read dim]: the nodes, or in a prefill the
            whole prompt (`logits` are then those after its last token only).
        sampling: turns logits into probabilities.
        residual: the residual stream after the exit layer of every token read, [batch read dim]; None without one.
    """

    logits: Float[Tensor, "batch nodes vocab"]
    hidden: Float[Tensor, "batch read dim"]
    sampling: SamplingParams
    residual: Float[Tensor, "batch read dim"] | None = None

    @cached_property
    def probs(self) -> Float[Tensor, "batch nodes vocab"]:
        """p at each node, the distribution of the token after it; made when it is first asked for."""
        return self.sampling.distribution(self.logits.flatten(0, 1)).view_as(self.logits)

    @cached_property
    def argmax(self) -> Int[Tensor, "batch nodes"]:
        """The most likely token after each node; -1 where a logit is NaN or infinite."""
        return argmaxes(self.logits.flatten(0, 1)).view(self.logits.shape[:2])


@dataclass(frozen=True)
class Verdict:
    """The decision of a rule.

    Args:
        path: accepted nodes, root first, padded with -1, [batch kept].
        next_token: the token that the target sampled after them (recovered or bonus), [batch].
    """

    path: Int[Tensor, "batch kept"]
    next_token: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Kept:
    """The nodes of a tree that became text, with the target's features, for drafters that feed on them.

    Args:
        path: the nodes, root first, padded with -1, [batch kept]; after the prompts, their positions.
        hidden: the target's last hidden states of these nodes, [batch kept dim].
        residual: the residual stream after the exit layer of an `ExitingDrafter`, [batch kept dim]; None for others.
    """

    path: Int[Tensor, "batch kept"]
    hidden: Float[Tensor, "batch kept dim"]
    residual: Float[Tensor, "batch kept dim"] | None = None

    @property
    def last_hidden(self) -> Float[Tensor, "batch dim"]:
        """`hidden` of each row's last kept node, which the next root follows. Undefined for finished rows."""
        last = ((self.path >= 0).sum(1) - 1).clamp(min=0)
        return self.hidden[torch.arange(len(last), device=last.device), last]


Begin = Callable[[TokenTree, Rows, int], Tensor]


@dataclass(frozen=True)
class Session:
    """One batch being generated, as a drafter meets it at the start.

    rows: the prompts' token ids; capacity: longest text in tokens, one tree included; begin: the verifier's, for an
    `ExitingDrafter`.
    """

    target: TargetModel
    rows: Rows
    sampling: SamplingParams
    capacity: int
    begin: Begin | None = None


@dataclass(frozen=True)
class DraftState:
    """Everything that a drafter may look at before a step.

    Args:
        rows: committed token ids of each row (prompt and text), the root last.
        kept: the nodes that the step before kept.
        room: how many tokens each row may still emit (0: finished; its tree is cut to the root).
        streams: random draws, for children that are sampled.
    """

    rows: Rows
    kept: Kept
    room: Sequence[int]
    streams: RandomStreams

    def draws(self, slots: int) -> Draws:
        """This step's draws for the drafter; slot i decides the token of node i."""
        return self.streams.draws([len(row) for row in self.rows], Streams.DRAFT, slots)


@runtime_checkable
class Drafter(Protocol):
    """Whatever proposes. `start` begins a batch; nothing is kept of the texts before."""

    @property
    def max_nodes(self) -> int:
        """Most nodes of a tree, root included."""
        ...

    def start(self, session: Session) -> None: ...

    def propose(self, state: DraftState) -> TokenTree:
        """A tree for every row, whose root is `state.rows[b][-1]`. It must be a function of the draws for it and of
        what was known before, the committed tokens at most: exactness rests on that."""
        ...


@runtime_checkable
class RememberingDrafter(Drafter, Protocol):
    """One whose tree may depend on what became of trees before it, not on the text alone: it cannot be replayed."""

    @property
    def remembers(self) -> bool: ...


@runtime_checkable
class ExitingDrafter(Drafter, Protocol):
    """One that drafts with the target's own first layers: each node it wants to look beyond goes through
    `session.begin`, and the verifier goes on from there."""

    @property
    def exit_layer(self) -> int | None:
        """How many layers; None: it needs none after all."""
        ...


def exit_layer_of(drafter: Drafter) -> int | None:
    """How many of the target's layers it drafts with, if any."""
    return drafter.exit_layer if isinstance(drafter, ExitingDrafter) else None


@dataclass(frozen=True)
class Size:
    """What a drafter has that the target has not. parameters: how many; training_tokens: answer tokens they were
    trained on, each epoch counted; None where there was no training, or nobody wrote it down."""

    parameters: int = 0
    training_tokens: int | None = None

    @classmethod
    def of(cls, module: nn.Module, training_tokens: int | None) -> Size:
        return cls(sum(parameter.numel() for parameter in module.parameters()), training_tokens)


@runtime_checkable
class SizedDrafter(Drafter, Protocol):
    """One with weights of its own, known once it has started."""

    @property
    def size(self) -> Size: ...


def size_of(drafter: Drafter) -> Size:
    """Of a drafter that has started."""
    return drafter.size if isinstance(drafter, SizedDrafter) else Size()


@runtime_checkable
class Verifier(Protocol):
    """Owns the target's cache: scores trees and commits paths."""

    target: TargetModel

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int, exit_layer: int | None = None) -> Scores:
        """Begin a batch. Returns logits [batch 1 vocab] after each prompt and hidden [batch longest dim]; with an exit
        layer, the residual stream after it likewise."""
        ...

    def begin(self, tree: TokenTree, rows: Rows, new: int) -> Float[Tensor, "batch new dim"]:
        """Read the last `new` nodes of a tree that is being grown with the target's first layers, down to the exit
        layer of the batch: the residual stream there. The tree that is verified next must begin with the nodes that
        were read, in their order; `rows` as in `verify`."""
        ...

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        """Score every node with the target. `rows` as in `DraftState`."""
        ...

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Keep the KV of the first `counts[b]` nodes on each path, forget the rest of the tree."""
        ...


@dataclass(frozen=True)
class ExactFor:
    """The trees on which a lossless rule keeps the target's distribution.

    Args:
        children: how a node's children may have been chosen, one or more of `specdec.decoding.grow_fixed.CHILDREN`.
        siblings: whether a node may have several children. False: chains only.

    Raises:
        InputError: no way of choosing children, or an unknown one.
    """

    children: tuple[str, ...]
    siblings: bool = True

    def __post_init__(self) -> None:
        if not self.children or not set(self.children) <= set(CHILDREN):
            expected = f"one or more of {', '.join(CHILDREN)}"
            fix = "declare how the children of the rule's trees are chosen"
            raise InputError("exact_for.children", expected=expected, got=self.children, fix=fix)


@runtime_checkable
class AcceptanceRule(Protocol):
    """Decides which path is kept. Pure: no model, no cache, no state."""

    name: str
    lossless: bool

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        """`target_probs[b, i]` is p after node i. Draw slot i decides on node i, slot 0 the next token."""
        ...


@runtime_checkable
class LosslessRule(AcceptanceRule, Protocol):
    """A rule with `lossless = True`. It declares its trees, refuses all others, and is proven on them
    (`specdec.exactness`)."""

    exact_for: ExactFor


def exact_for(rule: AcceptanceRule) -> ExactFor:
    """The trees that a lossless rule declares itself exact for.

    Raises:
        InputError: the rule declares none.
    """
    declared = getattr(rule, "exact_for", None)
    if isinstance(declared, ExactFor):
        return declared
    raise InputError(
        f"acceptance={rule.name}",
        expected="a lossless rule with `exact_for`, the trees on which it keeps the target's distribution",
        got="none" if declared is None else repr(declared),
        fix="declare exact_for = ExactFor(...), or lossless = False (docs/adding-a-rule.md)",
    )
