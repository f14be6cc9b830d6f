"""Several drafters, one tree: proposals merged on shared prefixes, the node budget shared out by measured acceptance.

It helps where they know different things: an n-gram table what the text has said, a trained drafter what the target
would say. Still one verify, and still exact: a merged tree is a function of the committed text, as its parts are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.drafting import require_ranked
from specdec.errors import InputError
from specdec.protocols import Drafter, DraftState, Session, Weights, exit_layer_of, weights_of
from specdec.tree import PAD, TokenTree

MEMORY = 0.9  # of the counts, per step: acceptance is that of about the last ten steps
PRIOR = 1.0  # nodes and accepted nodes a drafter begins with: all alike until something is known


class Union:
    """drafters: by any names; their children must be chosen by rank, so that each tree is a function of the text; at
    most one drafts with the target's first layers. nodes: drafted nodes in all; null: all that they propose.

    With a budget, each drafter's share is that of its acceptance (nodes accepted over nodes proposed, over the last
    steps of the same text) in the sum of all; a share is filled with the first nodes of its tree, and what one does not
    use goes to the next. The tree of a drafter that exits early always stays whole: the target has begun to read it.

    Raises:
        InputError: fewer than two drafters, or two that exit early; a budget below the number of drafters.
    """

    def __init__(self, drafters: Mapping[str, Drafter], nodes: int | None = None) -> None:
        # the nodes that the target has begun to read must come first in the tree
        self.drafters = sorted(drafters.values(), key=lambda drafter: exit_layer_of(drafter) is None)
        if len(drafters) < 2:
            raise InputError("drafter.drafters", expected="two drafters or more", got=len(drafters), fix="add one")
        if sum(exit_layer_of(drafter) is not None for drafter in self.drafters) > 1:
            expected = "at most one drafter with an exit layer"
            raise InputError("drafter.drafters", expected=expected, got="two", fix="remove one")
        if nodes is not None and nodes < len(drafters):
            expected, fix = f"at least {len(drafters)}, one for each drafter", "raise it, or use null for all"
            raise InputError("drafter.nodes", expected=expected, got=nodes, fix=fix)
        self.nodes = nodes

    @property
    def max_nodes(self) -> int:
        proposed = sum(drafter.max_nodes - 1 for drafter in self.drafters)
        if self.nodes is None:
            return 1 + proposed
        whole = self.drafters[0].max_nodes - 1 if self.exit_layer is not None else 0
        return 1 + min(proposed, whole + self.nodes)

    @property
    def remembers(self) -> bool:
        return self.nodes is not None

    @property
    def exit_layer(self) -> int | None:
        return exit_layer_of(self.drafters[0])

    @property
    def weights(self) -> Weights:
        """Of all of them; text that several were trained on counts for each."""
        parts = [weights for weights in map(weights_of, self.drafters) if weights.parameters]
        tokens = [weights.training_tokens for weights in parts]
        known = [count for count in tokens if count is not None]
        whole = sum(known) if parts and len(known) == len(parts) else None
        return Weights(sum(weights.parameters for weights in parts), whole)

    def start(self, session: Session) -> None:
        self._vocab = session.target.vocab_size
        for drafter in self.drafters:
            drafter.start(session)
        self._rows = [_Row(len(self.drafters)) for _ in session.rows]
        self._first = True

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        path = state.verdict.path.tolist()
        if not self._first:
            for row, kept in zip(self._rows, path, strict=True):
                row.learn([node for node in kept if node > 0])
        trees = [self._ask(i, drafter, state) for i, drafter in enumerate(self.drafters)]
        self._first = False
        begun = trees[0].nodes if self.exit_layer is not None else 0
        lists = [(tree.tokens.tolist(), tree.parents.tolist(), _sure(tree)) for tree in trees]
        for r, row in enumerate(self._rows):
            row.merge([(tokens[r], parents[r], sure[r]) for tokens, parents, sure in lists], self.nodes, begun)
        tokens, parents, sure = zip(*((row.tokens, row.parents, row.confidence) for row in self._rows), strict=True)
        return TokenTree.from_rows(tokens, parents, trees[0].tokens.device, sure)

    def _ask(self, number: int, drafter: Drafter, state: DraftState) -> TokenTree:
        """A drafter's tree; what it is told of the step before is in terms of its own nodes."""
        verdict = state.verdict
        if not self._first:
            verdict = replace(verdict, path=self._path_of(number, verdict.path))
        tree = drafter.propose(replace(state, verdict=verdict))
        require_ranked(tree, drafter, "drafter.drafters")
        return tree

    def _path_of(self, number: int, path: Tensor) -> Tensor:
        """The accepted path as the drafter numbers it; nodes that others proposed are numbered beyond its tree."""
        named = [
            [PAD if node == PAD else row.own[number].get(node, BEYOND) for node in kept]
            for row, kept in zip(self._rows, path.tolist(), strict=True)
        ]
        return torch.tensor(named, device=path.device).view_as(path)


BEYOND = 1 << 30  # a node of another drafter's tree
Part = tuple[list[int], list[int], list[float]]  # one row of a tree: tokens, parents, confidence


def _sure(tree: TokenTree) -> list[list[float]]:
    """Its nodes' confidence; -1 where the drafter says nothing of it."""
    sure = torch.full(tree.tokens.shape, -1.0) if tree.confidence is None else tree.confidence
    return sure.tolist()


class _Row:
    """One row's merged tree, and how well each drafter has done in its text."""

    def __init__(self, drafters: int) -> None:
        self._proposed, self._accepted = [PRIOR] * drafters, [PRIOR] * drafters
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.confidence: list[float] = []  # the largest, where several propose a node
        self.own: list[dict[int, int]] = [{} for _ in range(drafters)]  # merged node -> the drafter's own number

    def learn(self, kept: Sequence[int]) -> None:
        """What was accepted of the last tree, its root left out."""
        for i, own in enumerate(self.own):
            self._proposed[i] = MEMORY * self._proposed[i] + max(len(own) - 1, 0)
            self._accepted[i] = MEMORY * self._accepted[i] + sum(node in own for node in kept)

    def merge(self, trees: Sequence[Part], budget: int | None, begun: int) -> None:
        """begun: how many nodes of the first tree stand where they are, padding included."""
        self.tokens, self.parents, self.confidence = (part[: max(begun, 1)] for part in trees[0])  # type: ignore[assignment]
        self.own = [{0: 0} for _ in trees]
        self._child = {
            (parent, token): node
            for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True))
            if node and token != PAD
        }
        self.own[0] |= {node: node for node in self._child.values()}
        left = None if budget is None else max(budget - len(self._child), 0)
        for i, part in enumerate(trees):
            if i or not begun:
                wanted = None if left is None else self._share(i, left)
                taken = self._add(i, part, wanted)
                left = None if left is None else left - taken

    def _share(self, number: int, left: int) -> int:
        """Of the nodes that are left, this drafter's part among those still to come; what it leaves goes to them."""
        rates = [accepted / proposed for accepted, proposed in zip(self._accepted, self._proposed, strict=True)]
        return min(left, max(round(left * rates[number] / sum(rates[number:])), 1))

    def _add(self, number: int, part: Part, most: int | None) -> int:
        """Add the first nodes of a tree that are new, `most` at most; returns how many. Known ones are free."""
        (tokens, parents, confidence), merged, added = part, {0: 0}, 0
        for node in range(1, len(tokens)):
            if tokens[node] == PAD or parents[node] not in merged:
                continue
            key = (merged[parents[node]], tokens[node])
            if key not in self._child:
                if most is not None and added == most:
                    continue
                self._child[key] = len(self.tokens)
                self.tokens.append(tokens[node])
                self.parents.append(key[0])
                self.confidence.append(-1.0)
                added += 1
            merged[node] = self._child[key]
            self.confidence[merged[node]] = max(self.confidence[merged[node]], confidence[node])
            self.own[number].setdefault(merged[node], node)
        return added
