"""The drafter: another drafter's proposals, cut to what pays.

A node is worth the probability that it is accepted, and costs what a verify with it takes longer. Time is worth what
it brings on the average: at a rate of r tokens a second, a node that adds more tokens than r times its seconds makes
the text faster, and one that adds fewer makes it slower. The rate is that of the text so far, so that the two find each
other (Dinkelbach's method for a ratio). The same holds for every level of drafting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drafters.adaptive.costs import DraftCosts, VerifyCosts
from drafters.adaptive.depth import DepthChoice
from drafters.adaptive.estimates import SILENT, Estimates, Proposal
from specdec.drafting import require_ranked
from specdec.errors import InputError
from specdec.hardware import CostCurve, MeasuredCurve
from specdec.protocols import Drafter, DraftState, Session, Weights, exit_layer_of, weights_of
from specdec.tree import PAD, TokenTree

RATE_MEMORY = 0.95  # of tokens and seconds, per step: the rate is that of about the last twenty
FIRST_STEPS = 4.0  # of plain decoding, that a batch's rate begins with


class Adaptive:
    """drafter: one whose children are chosen by rank; let it propose more than is likely to pay. costs: a
    `profile.json` of experiments.profile_target; `auto`: the target is timed when a batch begins; or a `CostCurve`.
    draft_ms: of drafting one level; None: timed while it drafts. nodes: drafted nodes at most; None: all proposed ones.

    What it has learnt of acceptance and time stays from batch to batch. So its trees depend on what was drafted
    before, and, unless both costs are given, on the clock: so does sampled text, not its distribution.

    The nodes of a drafter that exits early all stay, since the target has begun to read them: there only the depth
    is chosen.

    Raises:
        InputError: a number out of range, or no such profile.
    """

    remembers = True

    def __init__(
        self,
        drafter: Drafter,
        costs: str | CostCurve = "auto",
        draft_ms: float | None = None,
        nodes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if nodes is not None and nodes < 1:
            raise InputError("adaptive.nodes", expected="an integer >= 1, or null", got=nodes, fix="raise it")
        if draft_ms is not None and draft_ms < 0:
            fix = "give a time, or null to have it measured"
            raise InputError("adaptive.draft_ms", expected="milliseconds >= 0", got=draft_ms, fix=fix)
        curve = costs if not isinstance(costs, str) else None if costs == "auto" else MeasuredCurve(Path(costs))
        self.drafter, self.nodes, self._clock = drafter, nodes, clock
        self._verify, self._draft = VerifyCosts(curve), DraftCosts(None if draft_ms is None else draft_ms / 1e3)
        self._estimates, self._depth = Estimates(), DepthChoice()

    @property
    def max_nodes(self) -> int:
        proposed = self.drafter.max_nodes
        return proposed if self.nodes is None or self.exit_layer is not None else min(proposed, 1 + self.nodes)

    @property
    def exit_layer(self) -> int | None:
        return exit_layer_of(self.drafter)

    @property
    def weights(self) -> Weights:
        return weights_of(self.drafter)

    def start(self, session: Session) -> None:
        self.drafter.start(session)
        self._rows = [_Row(len(row)) for row in session.rows]
        self._seconds = self._verify.seconds(session, self.max_nodes)
        self._extra = self._seconds - self._seconds[0]
        self._whole = self.exit_layer is not None  # asking costs more than a proposal may
        self._skips_padding = session.target.skips_padding
        self._tokens, self._spent = FIRST_STEPS * len(session.rows), FIRST_STEPS * float(self._seconds[0])
        self._first = True

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        emitted = 0
        for row, text, room in zip(self._rows, state.rows, state.room, strict=True):
            emitted += row.read(text, room, self._estimates)
        self._tokens = RATE_MEMORY * self._tokens + (0 if self._first else emitted)
        rate = self._tokens / self._spent
        drafting = self._draft.seconds(self._depth.deepest)
        depth = self._depth.choose(rate * drafting, self._most(sum(room > 0 for room in state.room), rate))
        tree, worth = self._ask(state, depth), np.zeros(1)
        if tree.nodes > 1:
            tree, worth = self._chosen(tree, state.room, rate)
        else:
            for row in self._rows:
                row.kept = [0]
        self._depth.learn(depth, worth)
        size = len(tree.tokens[tree.valid]) / len(self._rows) if self._skips_padding else tree.nodes
        verifying = float(np.interp(size - 1, np.arange(len(self._seconds)), self._seconds))
        spent = verifying + float(drafting[-1 if depth is None else depth])
        self._spent = RATE_MEMORY * self._spent + spent
        self._first = False
        return tree

    def _most(self, rows: int, rate: float) -> float:
        """The largest worth there could be: were every node of a chain right."""
        return float((rows * np.arange(len(self._extra)) - rate * self._extra).max())

    def _chosen(self, tree: TokenTree, room: Sequence[int], rate: float) -> tuple[TokenTree, np.ndarray]:
        """What is left of a proposal; and what trees of it down to depth 0, 1, ... are worth."""
        rates = self._estimates.rates()
        for row, proposal, left in zip(self._rows, _proposals(tree), room, strict=True):
            row.propose(proposal, rates, left)
        counts, worth = self._best(rate, int(tree.offered.max()))
        if self._whole:
            for row in self._rows:
                row.kept = list(range(tree.nodes))
            return tree, worth
        return _cut(tree, [row.keep(count) for row, count in zip(self._rows, counts, strict=True)]), worth

    def _ask(self, state: DraftState, depth: int | None) -> TokenTree:
        """The drafter's tree, down to that depth; it is told of the step before in terms of its own nodes."""
        if not self._first:
            path = state.verdict.path
            own = [row.own(kept) for row, kept in zip(self._rows, path.tolist(), strict=True)]
            state = replace(state, verdict=replace(state.verdict, path=torch.tensor(own, device=path.device)))
        if depth is not None:
            state = replace(state, room=[min(room, 1 + depth) for room in state.room])
        begun = self._clock()
        tree = self.drafter.propose(state)
        if not self._first:  # some drafters read the prompt in the first step
            self._draft.learn(self._depth.deepest if depth is None else depth, self._clock() - begun)
        require_ranked(tree, self.drafter, "drafter")
        return tree

    def _best(self, rate: float, reached: int) -> tuple[list[int], np.ndarray]:
        """How many nodes of each row pay; and what trees down to depth 0, 1, ... `reached` are worth."""
        worth, sizes = np.zeros(reached + 1), np.arange(len(self._extra))
        best, gains, ranked = 0, np.zeros(0), [np.zeros(0)]
        for depth in range(1, reached + 1):
            ranked = [row.ranked(depth)[: len(sizes) - 1] for row in self._rows]
            if self._skips_padding:  # a node has its price, whichever row it is in
                gains = -np.sort(-np.concatenate(ranked))
                price = np.interp(np.arange(len(gains) + 1) / len(ranked), sizes, self._extra)
            else:  # every row has room for as many nodes as the widest
                gains = np.zeros(max(map(len, ranked)))
                for row in ranked:
                    gains[: len(row)] += row
                price = self._extra[: len(gains) + 1]
            net = np.append(0.0, gains.cumsum()) - rate * price
            best = len(gains) if self._whole else int(net.argmax())
            worth[depth] = net[best]
        if self._skips_padding and best:
            return [int(np.count_nonzero(row >= gains[best - 1])) for row in ranked], worth
        return [best] * len(ranked), worth


class _Row:
    """One row's text so far, and what was proposed for it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pending: list[tuple[int, Proposal]] = []  # with the length of the text when they were made
        self.kept = [0]  # of the last proposal, in order

    def read(self, text: Sequence[int], room: int, estimates: Estimates) -> int:
        """Learn from proposals whose text has been written, of a text that has ended from all; how many tokens came."""
        new, self._length = len(text) - self._length, len(text)
        waiting = []
        for length, proposal in self._pending:
            if room and len(text) - length < len(proposal.shape.levels):
                waiting.append((length, proposal))
            else:
                estimates.learn(proposal, text[length:])
        self._pending = waiting
        return new

    def propose(self, proposal: Proposal, rates: np.ndarray, room: int) -> None:
        self._pending.append((self._length, proposal))
        depth = proposal.shape.depth
        gains = np.where(depth < max(room, 1), proposal.gains(rates), 0.0)  # what follows has no place
        # a child gains less than its parent and comes later: the first of these nodes are a tree, however many
        self._order = np.argsort(-gains, kind="stable")[: np.count_nonzero(gains)]
        self._gains, self._depth = gains[self._order], depth[self._order]

    def ranked(self, depth: int) -> np.ndarray:
        """What the nodes down to that depth gain, best first."""
        return self._gains[self._depth <= depth]

    def keep(self, nodes: int) -> list[int]:
        """Choose the best nodes, so many."""
        self.kept = [0, *np.sort(self._order[:nodes]).tolist()]
        return self.kept

    def own(self, path: Sequence[int]) -> list[int]:
        """An accepted path, numbered as the drafter does."""
        return [PAD if node == PAD else self.kept[node] for node in path]


def _proposals(tree: TokenTree) -> list[Proposal]:
    sure = torch.full(tree.tokens.shape, SILENT) if tree.confidence is None else tree.confidence
    parts: tuple[Tensor, ...] = (tree.tokens, tree.parents, sure)
    return [Proposal(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]


def _cut(tree: TokenTree, kept: Sequence[Sequence[int]]) -> TokenTree:
    """The nodes that are kept, renumbered."""
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    number = [{node: i for i, node in enumerate(row)} for row in kept]
    return TokenTree.from_rows(
        [[tokens[r][node] for node in row] for r, row in enumerate(kept)],
        [[number[r].get(parents[r][node], PAD) for node in row] for r, row in enumerate(kept)],
        tree.tokens.device,
    )
