"""Grow a token tree where the drafter is confident (EAGLE-2, arXiv 2406.16858). Depends on no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.grow_fixed import NextQ, TreeShape, level_q, level_q_among, over_all_tokens, require_children
from specdec.decoding.protocols import DraftState
from specdec.decoding.sampling import SamplingParams
from specdec.errors import InputError
from specdec.trees.transfer import on_device
from specdec.trees.tree import PAD, TokenTree


class DynamicTree:
    """A tree that grows where the drafter is confident (EAGLE-2, arXiv 2406.16858).

    The value of a node is the probability of its path under q. At each level the `beam` best nodes are expanded: each
    gets its `beam` most likely children. Of all nodes found, the `nodes` best are proposed. With beam 2 and nodes 3:

        level 1    a .60   b .30                       both are expanded
        level 2    aa .42  ab .12    ba .21  bb .06    children of a, children of b
        proposed   root  a  b  aa                      the root and the 3 best

    Children are chosen by rank, so acceptance is exact at any temperature.

    Args:
        depth: maximum number of levels.
        beam: nodes expanded per level, and children of each.
        nodes: drafted nodes per row, the root not counted.
        threshold: nodes with a smaller value are not expanded.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, depth: int, beam: int, nodes: int, threshold: float = 0.0) -> None:
        for name, value in (("depth", depth), ("beam", beam), ("nodes", nodes)):
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=repr(value), fix="raise it")
        if not 0 <= threshold < 1:
            raise InputError(
                "drafter.threshold", expected="a probability in [0, 1)", got=repr(threshold), fix="try 0.1"
            )
        self.depth, self.beam, self.nodes, self.threshold = depth, beam, nodes, threshold

    def grow(
        self,
        root: Int[Tensor, " batch"],
        next_q: NextQ,
        room: Sequence[int],
        keep_read: bool = False,
        vocabulary: Int[Tensor, " rows"] | None = None,
    ) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """Grow a tree level by level, keeping the most probable nodes.

        A node is expanded once the drafter has run on it. The expanded nodes come first in the tree, in the order in
        which they were run. A row's tree is the same as if the row were alone; with `keep_read`, numbers of nodes may
        differ.

        Args:
            root: last committed token of each row.
            next_q: called with the tree of the nodes run so far and the size of its last level. Returns the
                probabilities that rank the children of that level, at temperature 0 too; over the tokens of
                `vocabulary`, if given.
            room: as in `DraftState`.
            keep_read: propose all expanded nodes, padding included, however small their value.
            vocabulary: token ids of a draft vocabulary, or None.

        Returns:
            The tree and, per node, its index among the nodes run through the drafter (-1 if not run).
        """
        known = TokenTree.root_only(root)
        worth = torch.ones_like(known.tokens, dtype=torch.float32)  # values of the level that is run next
        deepest = on_device([max(tokens - 1, 0) for tokens in room], root.device)[:, None]
        depth = max(0, min(self.depth, max(room) - 1))
        pool = _Pool.of(root)
        for level in range(1, depth + 1):
            q = next_q(known, worth.shape[1])
            children = q.topk(min(self.beam, q.shape[-1]), dim=-1)
            value = (worth[..., None] * children.values).where(level <= deepest[..., None], 0.0)
            parent = torch.arange(known.nodes - worth.shape[1], known.nodes, device=root.device)
            tokens = children.indices if vocabulary is None else vocabulary[children.indices]
            pool = pool.with_level(tokens, value, children.values, parent)
            if level == depth:
                break
            best = value.flatten(1).topk(min(self.beam, value[0].numel()))
            open_ = (best.values >= max(self.threshold, TINY)) & (level < deepest)
            worth = best.values.where(open_, 0.0)
            if self.threshold and not bool(open_.any()):
                break
            at = best.indices + pool.size - value[0].numel()
            places = torch.arange(at.shape[1], device=at.device).expand_as(at) + known.nodes
            pool.read.scatter_(1, at, places.where(worth > 0, -1))
            tokens = pool.tokens.gather(1, at).where(worth > 0, PAD)
            parents = pool.parents.gather(1, at).where(worth > 0, PAD)
            known = TokenTree(torch.cat([known.tokens, tokens], 1), torch.cat([known.parents, parents], 1))
        return pool.beside(known, self.nodes + 1) if keep_read else pool.best(self.nodes + 1)


class ConfidentTree(DynamicTree):
    """The tree of a drafter that computes q level by level.

    With `top_k`, or at temperature 0, it holds the most likely nodes (`DynamicTree`). Otherwise children are drawn, and
    it is a chain drawn from q with replacement.

    Args:
        depth: as in `DynamicTree`.
        beam: as in `DynamicTree`.
        nodes: as in `DynamicTree`.
        threshold: as in `DynamicTree`.
        children: how children are chosen, one of `specdec.decoding.grow_fixed.CHILDREN`.

    Raises:
        InputError: a number out of range, an unknown way of choosing children.
    """

    def __init__(self, depth: int, beam: int, nodes: int, threshold: float, children: str) -> None:
        require_children(children)
        super().__init__(depth, beam, nodes, threshold)
        self.children, self._chain = children, TreeShape([1] * depth, "with_replacement")

    @property
    def max_nodes(self) -> int:
        """Largest number of nodes, root included."""
        return 1 + max(self.nodes, self.depth)

    def propose(
        self,
        root: Int[Tensor, " batch"],
        next_logits: NextQ,
        state: DraftState,
        sampling: SamplingParams,
        vocabulary: Int[Tensor, " rows"] | None,
        vocab: int,
        keep_read: bool = False,
    ) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """Grow the tree from the drafter's logits.

        Args:
            root: last committed token of each row.
            next_logits: called like `next_q` in `grow`, returns logits; over the rows of `vocabulary`, if given.
            state: the state before the step.
            sampling: how tokens are chosen.
            vocabulary: token ids of a draft vocabulary, or None.
            vocab: number of tokens of the target.
            keep_read: as in `grow`.

        Returns:
            As `grow`.
        """
        ranked, reads = self.children == "top_k" or sampling.greedy, 0

        def next_q(known: TokenTree, level: int) -> Tensor:
            nonlocal reads
            reads = known.nodes
            logits = next_logits(known, level)
            if ranked:
                return level_q_among(logits, vocabulary, vocab, known, state.rows, sampling)
            return level_q(over_all_tokens(logits, vocabulary, vocab), known, state.rows, sampling)

        if ranked:
            return self.grow(root, next_q, state.room, keep_read, vocabulary)
        draws, depth = state.draws(self._chain.nodes), max(0, min(self.depth, max(state.room) - 1))
        tree = self._chain.grow(root, next_q, draws, depth, "with_replacement", self.threshold)
        order = torch.arange(tree.nodes, device=root.device).expand_as(tree.tokens)
        return tree, order.where(order < reads, -1)


TINY = torch.finfo(torch.float32).tiny


@dataclass
class _Pool:
    """All nodes found, in the order in which they were found, the root first.

    Args:
        tokens: their tokens.
        parents: index of the parent among the nodes that were run.
        read: a node's own index among the nodes that were run; -1 if it was not.
        worth: value; 0 for padding.
        confidence: as in `TokenTree`.
    """

    tokens: Int[Tensor, "batch found"]
    parents: Int[Tensor, "batch found"]
    read: Int[Tensor, "batch found"]
    worth: Float[Tensor, "batch found"]
    confidence: Float[Tensor, "batch found"]

    @classmethod
    def of(cls, root: Int[Tensor, " batch"]) -> _Pool:
        tokens = root[:, None]
        zero, one = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.float32)
        return cls(tokens, zero - 1, zero, 2 * one, one)  # value 2: the root is always among the best

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    def with_level(
        self,
        tokens: Int[Tensor, "batch level width"],
        worth: Float[Tensor, "batch level width"],
        confidence: Float[Tensor, "batch level width"],
        parent: Int[Tensor, " level"],
    ) -> _Pool:
        """Add the children of a level.

        Args:
            tokens: tokens of the children.
            worth: values of the children.
            confidence: confidence of the children.
            parent: index of each parent among the nodes that were run.
        """
        new = [
            tokens,
            parent[:, None].expand_as(tokens),
            torch.full_like(tokens, -1),
            worth.float(),
            confidence.float(),
        ]
        old = [self.tokens, self.parents, self.read, self.worth, self.confidence]
        return _Pool(*(torch.cat([a, b.flatten(1)], 1) for a, b in zip(old, new, strict=True)))

    def best(self, count: int) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """Return the `count` nodes with the largest value, as a tree.

        A child's value is at most its parent's, and it was found later, so a chosen node's parent is chosen too.
        """
        chosen = self.worth.argsort(dim=1, descending=True, stable=True)[:, :count]
        read = self.read.gather(1, chosen)
        order = read.where(read >= 0, self.size).argsort(dim=1, stable=True)
        chosen, read = chosen.gather(1, order), read.gather(1, order)
        there = self.worth.gather(1, chosen) > 0
        number = torch.zeros_like(self.read)  # maps every node that was run to its number in the tree
        numbers = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
        number.scatter_(1, read.where(read >= 0, self.size - 1), numbers)
        parents = self.parents.gather(1, chosen)
        parents = number.gather(1, parents.clamp(min=0)).where(there & (parents >= 0), PAD)
        tokens = self.tokens.gather(1, chosen).where(there, PAD)
        return TokenTree(tokens, parents, confidence=self.confidence.gather(1, chosen)), read

    def beside(self, known: TokenTree, count: int) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """Return a tree of all nodes that were run, in their order, then the best of the others up to `count` nodes in
        all."""
        left = self.worth.where(self.read < 0, 0.0)
        free = (count - known.valid.sum(1)).clamp(min=0).minimum((left > 0).sum(1))
        chosen = left.argsort(dim=1, descending=True, stable=True)[:, : int(free.max())]
        there = torch.arange(chosen.shape[1], device=chosen.device) < free[:, None]
        tokens, parents = (table.gather(1, chosen).where(there, PAD) for table in (self.tokens, self.parents))
        read = torch.arange(known.nodes, device=tokens.device).expand_as(known.tokens)
        # one slot for each node that was run; all other nodes are written to one slot behind these
        sure = self.worth.new_zeros(len(tokens), known.nodes + 1)
        sure.scatter_(1, self.read.where(self.read >= 0, known.nodes), self.confidence)
        tree = TokenTree(
            torch.cat([known.tokens, tokens], 1),
            torch.cat([known.parents, parents], 1),
            confidence=torch.cat([sure[:, :-1], self.confidence.gather(1, chosen)], 1),
        )
        return tree, torch.cat([read, torch.full_like(tokens, -1)], 1)
