"""The interfaces of drafters, verifiers and acceptance rules, and the few types that pass between them.

One step of the loop:

    tree = drafter.propose(state)
    scores = verifier.verify(tree, state.rows)
    verdict = rule.accept(tree, scores.probs, draws)
    verifier.commit(verdict.path, counts)

At temperature 0 every lossless rule keeps the same path, so the loop computes it itself (`generate.greedy_verdict`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.sampling import Draws, RandomStreams, SamplingParams, Streams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.runtime.vocabulary import argmaxes
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scores:
    """The target's scores for every node of a tree, or after every prompt.

    Args:
        logits: logits after each node, penalties included (`SamplingParams.scores`), fp32 or more, [batch nodes vocab].
        hidden: the target's last hidden states of every token that was read, [batch read dim]: those of the nodes.
            After a prefill those of the whole prompt, while `logits` are those after its last token.
        sampling: turns logits into probabilities.
        residual: the residual stream after the exit layer for every token that was read, [batch read dim]; None without
            an exit layer.
    """

    logits: Float[Tensor, "batch nodes vocab"]
    hidden: Float[Tensor, "batch read dim"]
    sampling: SamplingParams
    residual: Float[Tensor, "batch read dim"] | None = None

    @cached_property
    def probs(self) -> Float[Tensor, "batch nodes vocab"]:
        """p at each node: the distribution of the token after it. Computed on first use."""
        return self.sampling.distribution(self.logits.flatten(0, 1)).view_as(self.logits)

    @cached_property
    def argmax(self) -> Int[Tensor, "batch nodes"]:
        """The most likely token after each node; -1 if one of its logits is NaN or infinite."""
        return argmaxes(self.logits.flatten(0, 1)).view(self.logits.shape[:2])

    def top(self, k: int) -> tuple[Int[Tensor, "batch nodes k"], Float[Tensor, "batch nodes k"]]:
        """Return the `k` most likely tokens after each node and their probabilities at temperature 1, best first."""
        best = self.logits.topk(min(k, self.logits.shape[-1]), -1)
        return best.indices, (best.values - self.logits.logsumexp(-1, keepdim=True)).exp()


@dataclass(frozen=True)
class Verdict:
    """The decision of a rule.

    Args:
        path: accepted nodes, root first, padded with -1, [batch kept].
        next_token: the token that the target sampled after the accepted ones (recovered or bonus), [batch].
    """

    path: Int[Tensor, "batch kept"]
    next_token: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Kept:
    """The nodes of a tree that became text, with the target's features of them, for drafters that use these.

    Args:
        path: the nodes, root first, padded with -1, [batch kept]. After the prompts: the positions of their tokens.
        hidden: the target's last hidden states of these nodes, [batch kept dim].
        residual: the residual stream after the exit layer, [batch kept dim]. None if the drafter has no exit layer
            (`Traits`).
        lengths: number of nodes of each row, if the host knows it.
    """

    path: Int[Tensor, "batch kept"]
    hidden: Float[Tensor, "batch kept dim"]
    residual: Float[Tensor, "batch kept dim"] | None = None
    lengths: Sequence[int] | None = None

    @property
    def counts(self) -> list[int]:
        """Number of nodes of each row; 0 for finished rows. Waits for the device only without `lengths`."""
        return (self.path >= 0).sum(1).tolist() if self.lengths is None else list(self.lengths)

    @property
    def last_hidden(self) -> Float[Tensor, "batch dim"]:
        """`hidden` of the last kept node of each row, which the next root follows. Undefined for finished rows."""
        last = ((self.path >= 0).sum(1) - 1).clamp(min=0)
        return self.hidden[torch.arange(len(last), device=last.device), last]


@dataclass(frozen=True)
class Verified:
    """The tree of the step before, with the target's most likely tokens after each of its nodes, kept or not.

    A rejected node tells what the target would say there, which often comes true a few tokens later.

    Args:
        tree: the tree that was verified: that of all drafters, if several draft together. After the prompts: the last
            token of each as a tree of one node.
        tokens: the most likely tokens after each node, best first, [batch nodes k]. Undefined for padding.
        probs: their probabilities at temperature 1, [batch nodes k].
    """

    tree: TokenTree
    tokens: Int[Tensor, "batch nodes k"]
    probs: Float[Tensor, "batch nodes k"]


Begin = Callable[[TokenTree, Rows, int], Tensor]


@dataclass(frozen=True)
class Session:
    """A batch that is about to be generated. A drafter gets it in `start`.

    Args:
        target: the target model.
        rows: token ids of the prompts.
        sampling: how tokens are chosen.
        capacity: longest text in tokens, one tree included.
        begin: the verifier's `begin`, for a drafter that exits early (`Traits`).
        stop: when a text ends; None if unknown.
    """

    target: TargetModel
    rows: Rows
    sampling: SamplingParams
    capacity: int
    begin: Begin | None = None
    stop: StopRule | None = None


@dataclass(frozen=True)
class DraftState:
    """Everything that a drafter may look at before a step.

    Args:
        rows: committed token ids of each row (prompt and text), the root last.
        kept: the nodes that were kept in the step before.
        room: how many tokens each row may still emit. 0 for a finished row, whose tree is cut to the root.
        streams: random draws, for children that are sampled.
        verified: the target's most likely tokens at every node of the step before. None unless the drafter asks for
            them (`Traits.top_k`).
    """

    rows: Rows
    kept: Kept
    room: Sequence[int]
    streams: RandomStreams
    verified: Verified | None = None

    def draws(self, slots: int) -> Draws:
        """Return the drafter's draws of this step; slot i decides the token of node i."""
        return self.streams.draws([len(row) for row in self.rows], Streams.DRAFT, slots)

    if not TYPE_CHECKING:  # a type checker refuses unknown names by itself

        def __getattr__(self, name: str) -> None:
            raise AttributeError(
                f"DraftState has no {name!r}, but rows, kept (the nodes kept in the step before), room, streams and "
                "draws(slots); see docs/adding-a-drafter.md"
            )


@runtime_checkable
class Drafter(Protocol):
    """Proposes trees. `start` begins a batch; nothing of earlier texts is kept."""

    @property
    def max_nodes(self) -> int:
        """The most nodes a tree may have, root included."""
        ...

    def start(self, session: Session) -> None:
        """Begin a batch, and forget the one before."""
        ...

    def propose(self, state: DraftState) -> TokenTree:
        """Return one tree per row, with `state.rows[b][-1]` as its root.

        The tree must be a function of its draws and of what was known before (the committed tokens at most). Exactness
        depends on that.
        """
        ...


@dataclass(frozen=True)
class Size:
    """Size of a drafter's own weights.

    parameters: number of parameters; training_tokens: answer tokens they were trained on, summed over epochs, or None
    if untrained or not recorded.
    """

    parameters: int = 0
    training_tokens: int | None = None

    @classmethod
    def of(cls, module: nn.Module, training_tokens: int | None) -> Size:
        return cls(sum(parameter.numel() for parameter in module.parameters()), training_tokens)


@dataclass(frozen=True)
class Traits:
    """Facts about a drafter beside its trees, for the loop and for measurements.

    Args:
        exit_layer: number of the target's own layers that it drafts with; None if it uses none. Such a drafter runs
            every node that it drafts behind through `session.begin`, and the verifier goes on from there.
        remembers: whether its trees may depend on the fate of earlier trees, not on the text alone. Such a run cannot
            be replayed.
        size: size of its own weights, known once it has started.
        greedy_only: whether it drafts at temperature 0 only. Its `start` refuses other temperatures.
        top_k: how many of the target's most likely tokens it wants at each node of the last tree (`Verified`); 0: none.
        known_tokens: tokens of other texts that it drafts from; 0 is a cold start, None a drafter that never does.
        learns: whether it learns from finished texts (`Learner`).
    """

    exit_layer: int | None = None
    remembers: bool = False
    size: Size = Size()
    greedy_only: bool = False
    top_k: int = 0
    known_tokens: int | None = None
    learns: bool = False


@runtime_checkable
class Learner(Protocol):
    """A drafter that may learn from finished texts.

    The loop never calls `learn`: whoever generates decides. A benchmark calls it once a text has been measured for the
    last time, so that no text is drafted from itself.
    """

    def learn(self, rows: Rows) -> None:
        """Draft from these texts (prompt and answer), too, from the next batch on.

        Does nothing unless the drafter was asked to learn.
        """
        ...


def traits_of(drafter: Drafter) -> Traits:
    """Return a drafter's `traits`; the plain ones if it declares none."""
    traits: Traits = getattr(drafter, "traits", Traits())
    return traits


@runtime_checkable
class Preparing(Protocol):
    """A drafter with work of its own that is no part of drafting, such as recording texts."""

    def prepare(self, target: TargetModel, rows: Rows, sampling: SamplingParams, stop: StopRule) -> None:
        """Prepare for a batch. A benchmark calls it before it starts its clock; `start` must not depend on it.

        Arguments as in `specdec.decoding.generate.speculative`.
        """
        ...


@runtime_checkable
class Verifier(Protocol):
    """Owns the target's cache: scores trees and commits paths."""

    target: TargetModel

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int, exit_layer: int | None = None) -> Scores:
        """Begin a batch: read the prompts and commit them.

        Args:
            rows: token ids of the prompts.
            sampling: how tokens are chosen.
            capacity: longest text in tokens, one tree included.
            exit_layer: number of target layers that the drafter uses, or None.

        Returns:
            Scores with logits [batch 1 vocab] after each prompt and hidden [batch longest dim]. With an exit layer also
            the residual stream after it, [batch longest dim].
        """
        ...

    def begin(self, tree: TokenTree, rows: Rows, new: int) -> Float[Tensor, "batch new dim"]:
        """Run the last `new` nodes of a growing tree through the target's first layers, up to the batch's exit layer.

        The tree that is verified next must begin with the nodes that were run, in their order. `rows` as in `verify`.

        Returns:
            The residual stream at the exit layer, [batch new dim].
        """
        ...

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        """Score every node with the target. `rows` as in `DraftState`."""
        ...

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Keep the KV of the first `counts[b]` nodes on each path, and forget the rest of the tree."""
        ...


@dataclass(frozen=True)
class ExactFor:
    """The trees on which a lossless rule keeps the target's distribution.

    Args:
        children: ways of choosing a node's children, one or more of `specdec.decoding.grow_fixed.CHILDREN`.
        siblings: whether a node may have several children. If False, only chains are allowed.

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
    """Decides which path is kept. A pure function: it uses no model and no cache, and keeps no state."""

    name: str
    lossless: bool

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        """Judge a tree.

        `target_probs[b, i]` is p after node i. Draw slot i decides on node i, slot 0 the next token.
        """
        ...


@runtime_checkable
class LosslessRule(AcceptanceRule, Protocol):
    """A rule with `lossless = True`. It declares the trees that it is exact for and refuses all others.
    `specdec.exactness` proves it on the declared ones."""

    exact_for: ExactFor


def exact_for(rule: AcceptanceRule) -> ExactFor:
    """Return the trees that a lossless rule declares itself exact for.

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
