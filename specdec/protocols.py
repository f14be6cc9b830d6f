"""What a drafter, a verifier and an acceptance rule are, and the few types that pass between them.

One step of the loop:  tree = drafter.propose(state); scores = verifier.verify(tree, state.rows);
verdict = rule.accept(tree, scores.probs, draws); verifier.commit(verdict.path, counts).
At temperature 0 a lossless rule has one choice and is not asked (`generate.greedy_verdict`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from specdec.runtime.vocabulary import argmaxes
from specdec.sampling import Draws, SamplingParams, Streams
from specdec.target import TargetModel
from specdec.tree import TokenTree

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Scores:
    """What the target says of a tree.

    logits [batch nodes vocab]: after each node, penalties included (`SamplingParams.scores`), fp32 or more.
    hidden [batch read dim]: the target's last hidden states at every token read: the nodes, or in a prefill
    the whole prompt (logits are then those after its last token only).
    sampling: what makes probabilities of logits.
    """

    logits: Float[Tensor, "batch nodes vocab"]
    hidden: Float[Tensor, "batch read dim"]
    sampling: SamplingParams

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
    """What is kept of a tree.

    path [batch kept]: accepted nodes, root first, padded with -1. next_token [batch]: the token the
    target sampled after them (recovered or bonus). hidden [batch kept dim]: target features of the kept
    nodes, for drafters that feed on them; None as a rule returns it, filled in by the loop.
    """

    path: Int[Tensor, "batch kept"]
    next_token: Int[Tensor, " batch"]
    hidden: Float[Tensor, "batch kept dim"] | None = None


@dataclass(frozen=True)
class Session:
    """One batch being generated, as a drafter meets it at the start.

    rows: the prompts' token ids; capacity: longest text in tokens, one tree included.
    """

    target: TargetModel
    rows: Rows
    sampling: SamplingParams
    capacity: int


@dataclass(frozen=True)
class DraftState:
    """What a drafter may look at before each step.

    rows: committed token ids of each row (prompt and text), the root last. verdict: of the step before;
    after the prefill its path holds the prompt's positions. room: how many tokens each row may still
    emit (0: finished; its tree is cut to the root). streams: random draws, for children that are sampled.
    """

    rows: Rows
    verdict: Verdict
    room: Sequence[int]
    streams: Streams

    def draws(self, slots: int) -> Draws:
        """This step's draws for the drafter; slot i decides the token of node i."""
        return self.streams.draws([len(row) for row in self.rows], Streams.DRAFT, slots)


@runtime_checkable
class Drafter(Protocol):
    """Whatever proposes. Stateless between batches: `start` begins anew."""

    @property
    def max_nodes(self) -> int:
        """Most nodes of a tree, root included."""
        ...

    def start(self, session: Session) -> None: ...

    def propose(self, state: DraftState) -> TokenTree:
        """A tree for every row, whose root is `state.rows[b][-1]`. It must be a function of the
        committed tokens and of the draws: exactness rests on that."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Owns the target's cache: scores trees and commits paths."""

    target: TargetModel

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int) -> Scores:
        """Begin a batch. Returns probs [batch 1 vocab] after each prompt and hidden [batch longest dim]."""
        ...

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        """Score every node with the target. `rows` as in `DraftState`."""
        ...

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Keep the KV of the first `counts[b]` nodes on each path, forget the rest of the tree."""
        ...


@runtime_checkable
class AcceptanceRule(Protocol):
    """Decides which path is kept. Pure: no model, no cache, no state."""

    name: str
    lossless: bool

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        """`target_probs[b, i]` is p after node i. Draw slot i decides on node i, slot 0 the next token."""
        ...
