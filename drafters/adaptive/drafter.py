"""Wrap another drafter: draft as deep as drafting pays, and keep only the nodes that pay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from drafters.adaptive.choice import NodeChoice
from drafters.adaptive.costs import DraftCosts, VerifyCosts
from drafters.adaptive.depth import DepthChoice
from drafters.shared.estimates import Estimates, Proposal
from specdec.decoding.grow_fixed import require_ranked
from specdec.decoding.protocols import Drafter, DraftState, Learner, Rows, Session, Traits, traits_of
from specdec.errors import InputError
from specdec.hardware import CostCurve, MeasuredCurve
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree


class Adaptive:
    """A drafter that proposes the part of another's tree that pays.

    Acceptance and times that were learnt stay from batch to batch. So the trees depend on earlier drafts and, unless
    both costs are given, on the clock. Sampled text depends on them too, but its distribution does not.

    If the wrapped drafter exits early, all its nodes are kept, because the target's first layers have already read
    them; only the depth is chosen.

    Args:
        drafter: a drafter whose children are chosen by rank. It should propose more nodes than are likely to pay.
        costs: path of a `profile.json` of experiments.profile_target; `auto` to time the target when a batch begins; or
            a `CostCurve`.
        draft_ms: milliseconds to draft one level; None measures it while drafting.
        nodes: largest number of drafted nodes per row; None allows all proposed ones.
        clock: returns seconds; replaced in tests.

    Raises:
        InputError: a number out of range, or a profile that does not exist.
    """

    def __init__(
        self,
        drafter: Drafter,
        costs: str | CostCurve = "auto",
        draft_ms: float | None = None,
        nodes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if nodes is not None and nodes < 1:
            raise InputError("adaptive.nodes", expected="an integer >= 1, or null", got=repr(nodes), fix="raise it")
        if draft_ms is not None and draft_ms < 0:
            fix = "give a time, or null to have it measured"
            raise InputError("adaptive.draft_ms", expected="milliseconds >= 0", got=repr(draft_ms), fix=fix)
        curve = costs if not isinstance(costs, str) else None if costs == "auto" else MeasuredCurve(Path(costs))
        self.drafter, self.nodes, self._clock = drafter, nodes, clock
        self._verify, self._draft = VerifyCosts(curve), DraftCosts(None if draft_ms is None else draft_ms / 1e3)
        self._estimates, self._depth = Estimates(), DepthChoice()

    @property
    def max_nodes(self) -> int:
        proposed = self.drafter.max_nodes
        return proposed if self.nodes is None or self.traits.exit_layer is not None else min(proposed, 1 + self.nodes)

    @property
    def traits(self) -> Traits:
        return replace(traits_of(self.drafter), remembers=True)

    def learn(self, rows: Rows) -> None:
        """Let the wrapped drafter learn, if it may."""
        if isinstance(self.drafter, Learner):
            self.drafter.learn(rows)

    def start(self, session: Session) -> None:
        self.drafter.start(session)
        self._choice = NodeChoice(
            [len(row) for row in session.rows],
            self._verify.seconds(session, self.max_nodes),
            self._estimates,
            skips_padding=session.target.skips_padding,
            whole=self.traits.exit_layer is not None,
        )

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        choice = self._choice
        choice.read(state.rows, state.room)
        drafting = self._draft.seconds(self._depth.deepest)
        depth = self._depth.choose(choice.rate * drafting, choice.most(sum(room > 0 for room in state.room)))
        tree = self._ask(state, depth)
        spent, looks = float(drafting[-1 if depth is None else depth]), self._depth.looks
        kept, worth = choice.choose(Proposal.rows(tree), state.room, spent, by_depth=looks)
        if worth is not None:
            self._depth.learn(depth, worth)
        return _cut(tree, kept)

    def _ask(self, state: DraftState, depth: int | None) -> TokenTree:
        """Return the wrapped drafter's tree down to a depth; it gets the last accepted path in its own numbers."""
        begun = self._choice.begun
        if begun:
            path = state.kept.path
            own = on_device(self._choice.own(path.tolist()), path.device)
            state = replace(state, kept=replace(state.kept, path=own))
        if depth is not None:
            state = replace(state, room=[min(room, 1 + depth) for room in state.room])
        asked = self._clock()
        tree = self.drafter.propose(state)
        if begun:  # the first step is not timed, because some drafters read the prompt in it
            self._draft.learn(self._depth.deepest if depth is None else depth, self._clock() - asked)
        require_ranked(tree, self.drafter, "drafter")
        return tree


def _cut(tree: TokenTree, kept: Sequence[Sequence[int]]) -> TokenTree:
    """Return the tree of the kept nodes, renumbered."""
    if all(len(row) == tree.nodes for row in kept):
        return tree
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    number = [{node: i for i, node in enumerate(row)} for row in kept]
    return TokenTree.from_rows(
        [[tokens[r][node] for node in row] for r, row in enumerate(kept)],
        [[number[r].get(parents[r][node], PAD) for node in row] for r, row in enumerate(kept)],
        tree.tokens.device,
    )
