"""Merge the proposals of several drafters into one tree, and keep the nodes that are most likely to be accepted.

This helps if the drafters know different things: an n-gram table knows what the text has repeated, a trained drafter
knows what the target is likely to say. A step still needs one verify. The result is still exact, because the merged
tree depends only on the past, as its parts do. Nodes with the same path of tokens become one node:

    n-gram    the ( cat ( sat ) )
    trained   the ( cat ( ran ), dog )
    merged    the ( cat ( sat, ran ), dog )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drafters.shared.estimates import SILENT, Estimates, Pending, Proposal
from specdec.decoding.grow_fixed import require_ranked
from specdec.decoding.protocols import Drafter, DraftState, Learner, Rows, Session, Size, Traits, traits_of
from specdec.errors import InputError
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree

MEMORY = 0.9  # decay of the counts per proposal; fast, because texts turn from copying to new words within a few steps
BEYOND = 1 << 30  # stands for an accepted node that is not in this drafter's tree


class UnionDrafter:
    """A drafter that merges the trees of others.

    If `nodes` is set, the nodes most likely to be accepted are kept, whichever drafter proposed them. Their probability
    is estimated from how often each drafter was right in the same text so far, by depth, rank and confidence
    (`Estimates`). A node that several drafters propose counts once. The tree of a drafter that exits early is never
    cut, because the target's first layers have already read it.

    Args:
        drafters: the drafters by name; any names will do. Their children must be chosen by rank, so that each tree is a
            function of the text. At most one may draft with the target's first layers.
        nodes: drafted nodes per row, the root not counted; None keeps all that are proposed.

    Raises:
        InputError: fewer than two drafters, two that exit early, or `nodes` < 1.
    """

    def __init__(self, drafters: Mapping[str, Drafter], nodes: int | None = None) -> None:
        # the nodes that the target's first layers have read must come first in the tree
        self.drafters = sorted(drafters.values(), key=lambda drafter: traits_of(drafter).exit_layer is None)
        if len(drafters) < 2:
            raise InputError("drafter.drafters", expected="two drafters or more", got=len(drafters), fix="add one")
        if sum(traits_of(drafter).exit_layer is not None for drafter in self.drafters) > 1:
            expected = "at most one drafter with an exit layer"
            raise InputError("drafter.drafters", expected=expected, got="two", fix="remove one")
        if nodes is not None and nodes < 1:
            raise InputError("drafter.nodes", expected="an integer >= 1, or null", got=repr(nodes), fix="raise it")
        self.nodes = nodes

    @property
    def max_nodes(self) -> int:
        proposed = sum(drafter.max_nodes - 1 for drafter in self.drafters)
        if self.nodes is None:
            return 1 + proposed
        whole = self.drafters[0].max_nodes - 1 if self.traits.exit_layer is not None else 0
        return 1 + min(proposed, whole + self.nodes)

    @property
    def traits(self) -> Traits:
        each = [traits_of(drafter) for drafter in self.drafters]
        known = [traits.known_tokens for traits in each if traits.known_tokens is not None]
        return Traits(
            exit_layer=each[0].exit_layer,
            remembers=self.nodes is not None or any(traits.remembers for traits in each),
            size=self._size,
            greedy_only=any(traits.greedy_only for traits in each),
            top_k=max(traits.top_k for traits in each),
            known_tokens=sum(known) if known else None,
            learns=any(traits.learns for traits in each),
        )

    @property
    def _size(self) -> Size:
        """The sum over all drafters. Text that several were trained on counts once for each."""
        parts = [size for size in (traits_of(drafter).size for drafter in self.drafters) if size.parameters]
        tokens = [size.training_tokens for size in parts]
        known = [count for count in tokens if count is not None]
        whole = sum(known) if parts and len(known) == len(parts) else None
        return Size(sum(size.parameters for size in parts), whole)

    def start(self, session: Session) -> None:
        self._vocab = session.target.vocab_size
        for drafter in self.drafters:
            drafter.start(session)
        self._rows = [_MergedRow(len(self.drafters)) for _ in session.rows]
        self._first = True

    def learn(self, rows: Rows) -> None:
        """Let the drafters that may learn do so."""
        for drafter in self.drafters:
            if isinstance(drafter, Learner):
                drafter.learn(rows)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        trees = [self._ask(i, drafter, state) for i, drafter in enumerate(self.drafters)]
        self._first = False
        begun = trees[0].nodes if self.traits.exit_layer is not None else 1
        proposals = zip(*map(Proposal.rows, trees), strict=True)
        for row, text, parts in zip(self._rows, state.rows, proposals, strict=True):
            row.merge(parts, begun)
            if self.nodes is not None:
                row.cut(row.rates(parts, text), self.nodes, begun)
        tokens, parents, sure = zip(*((row.tokens, row.parents, row.confidence) for row in self._rows), strict=True)
        return TokenTree.from_rows(tokens, parents, trees[0].tokens.device, sure)

    def _ask(self, number: int, drafter: Drafter, state: DraftState) -> TokenTree:
        """Return one drafter's tree; its view of the last accepted path is in its own node numbers."""
        kept = state.kept
        if not self._first:
            kept = replace(kept, path=self._path_of(number, kept.path))
        tree = drafter.propose(replace(state, kept=kept))
        require_ranked(tree, drafter, "drafter.drafters")
        return tree

    def _path_of(self, number: int, path: Tensor) -> Tensor:
        """Renumber the accepted path as the drafter numbers its nodes; nodes it did not propose become `BEYOND`."""
        named = [
            [PAD if node == PAD else row.own[number].get(node, BEYOND) for node in kept]
            for row, kept in zip(self._rows, path.tolist(), strict=True)
        ]
        return on_device(named, path.device).view_as(path)


class _MergedRow:
    """The merged tree of one row, and the estimates of each drafter on the row's text."""

    def __init__(self, drafters: int) -> None:
        self._estimates = [Estimates(MEMORY) for _ in range(drafters)]
        self._pending = [Pending() for _ in range(drafters)]
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.confidence: list[float] = []  # the largest, if several drafters propose a node
        self.own: list[dict[int, int]] = []  # per drafter: merged node -> the drafter's own number

    def merge(self, proposals: Sequence[Proposal], begun: int) -> None:
        """Merge the drafters' proposals on shared prefixes.

        Args:
            proposals: one per drafter.
            begun: number of nodes of the first tree that keep their numbers, padding included.
        """
        first = proposals[0]
        self.tokens, self.parents = list(first.tokens[:begun]), list(first.parents[:begun])
        self.confidence = list(first.confidence[:begun])
        child = {key: node for node, key in enumerate(zip(self.parents, self.tokens, strict=True)) if key[0] != PAD}
        self.own = [{0: 0} for _ in proposals]
        for proposal, own in zip(proposals, self.own, strict=True):
            merged = {0: 0}
            for node, (token, parent) in enumerate(zip(proposal.tokens, proposal.parents, strict=True)):
                if parent not in merged:  # the root, and padding
                    continue
                key = (merged[parent], token)
                if key not in child:
                    child[key] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(key[0])
                    self.confidence.append(SILENT)
                merged[node] = at = child[key]
                self.confidence[at] = max(self.confidence[at], proposal.confidence[node])
                own.setdefault(at, node)

    def rates(self, proposals: Sequence[Proposal], text: Sequence[int]) -> list[list[float]]:
        """Return P(right | parent right) for the nodes of each proposal, learnt from earlier proposals."""
        rates = []
        for proposal, pending, estimates in zip(proposals, self._pending, self._estimates, strict=True):
            pending.judge(text, estimates)
            pending.add(proposal, len(text))
            rates.append(estimates.rates()[proposal.cells].tolist())
        return rates

    def cut(self, rates: Sequence[Sequence[float]], budget: int, begun: int) -> None:
        """Keep the first `begun` nodes, and the most probable of the others.

        Args:
            rates: P(right | parent right) per drafter and node, in the drafter's own numbers.
            budget: drafted nodes to keep; nodes that are never cut count too.
            begun: as in `merge`.
        """
        gains = [1.0]  # the probability that a node is accepted
        for node, parent in enumerate(self.parents[1:], 1):
            right = max((rate[own[node]] for rate, own in zip(rates, self.own, strict=True) if node in own), default=0)
            gains.append(gains[parent] * right)
        left = max(budget - sum(parent != PAD for parent in self.parents[:begun]), 0)
        # a child gains no more than its parent and comes later in a stable sort, so every prefix of `best` is a tree
        best = sorted(range(begun, len(gains)), key=lambda node: -gains[node])[:left]
        kept = [*range(begun), *sorted(best)]
        number = {node: i for i, node in enumerate(kept)}
        self.tokens, self.confidence = [self.tokens[node] for node in kept], [self.confidence[node] for node in kept]
        self.parents = [number.get(self.parents[node], PAD) for node in kept]
        self.own = [{number[node]: its for node, its in own.items() if node in number} for own in self.own]


Union = UnionDrafter  # its name in configs that were saved before
