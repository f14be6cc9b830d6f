"""Growing a token tree where the drafter is sure (EAGLE-2, arXiv 2406.16858). Knows no model."""

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
from specdec.trees.tree import PAD, TokenTree


class DynamicTree:
    """A tree that grows where the drafter is sure (EAGLE-2, arXiv 2406.16858).

    A node is worth the probability of its path under q. Level by level the `beam` best nodes are read on and get
    `beam` children each, the likeliest ones; of all nodes the `nodes` best are proposed. Children are chosen by
    rank, so the tree is exact to verify at any temperature.

    depth: levels at most; threshold: a node worth less is not read on.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, depth: int, beam: int, nodes: int, threshold: float = 0.0) -> None:
        for name, value in (("depth", depth), ("beam", beam), ("nodes", nodes)):
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=value, fix="raise it")
        if not 0 <= threshold < 1:
            raise InputError("drafter.threshold", expected="a probability in [0, 1)", got=threshold, fix="try 0.1")
        self.depth, self.beam, self.nodes, self.threshold = depth, beam, nodes, threshold

    def grow(
        self,
        root: Int[Tensor, " batch"],
        next_q: NextQ,
        room: Sequence[int],
        keep_read: bool = False,
        vocabulary: Int[Tensor, " rows"] | None = None,
    ) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """The tree, and of each of its nodes how many had been read before it (-1: it was not read). Nodes that were
        read come first, in that order; `keep_read`: all of them, padding too, however little they are worth.

        next_q gets the tree of the nodes read so far, and how many of them are its last level, and returns what ranks
        their children: probabilities, at temperature 0 too; of the tokens of a draft `vocabulary`, where one is given.
        room: as in `DraftState`. A row's tree is what it would be alone; with `keep_read`, numbers of nodes may differ.
        """
        known = TokenTree.root_only(root)
        worth = torch.ones_like(known.tokens, dtype=torch.float32)  # of the level that is read next
        deepest = torch.tensor([max(tokens - 1, 0) for tokens in room], device=root.device)[:, None]
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
    """What a drafter proposes that is asked level by level: the likeliest nodes; or, where children are drawn (another
    choice than `top_k`, at a temperature above 0), a chain drawn from q with replacement.

    Raises:
        InputError: a number out of range, an unknown way of choosing children.
    """

    def __init__(self, depth: int, beam: int, nodes: int, threshold: float, children: str) -> None:
        require_children(children)
        super().__init__(depth, beam, nodes, threshold)
        self.children, self._chain = children, TreeShape([1] * depth, "with_replacement")

    @property
    def max_nodes(self) -> int:
        """Root included."""
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
        """As `grow`. next_logits: called like `next_q`; over a draft vocabulary's rows, where there is one."""
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
    """Everything that could be proposed, in the order it was found; the root first.

    parents: number of the parent among the nodes read; read: a node's own number among them, -1; worth: 0 where
    there is nothing; confidence: as in `TokenTree`.
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
        return cls(tokens, zero - 1, zero, 2 * one, one)  # worth more than all others

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
        """The `count` most valuable nodes. A child is worth no more than its parent and was found later, so that
        with every node its parent is chosen."""
        chosen = self.worth.argsort(dim=1, descending=True, stable=True)[:, :count]
        read = self.read.gather(1, chosen)
        order = read.where(read >= 0, self.size).argsort(dim=1, stable=True)
        chosen, read = chosen.gather(1, order), read.gather(1, order)
        there = self.worth.gather(1, chosen) > 0
        number = torch.zeros_like(self.read)  # of every node read: its number in the tree
        numbers = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
        number.scatter_(1, read.where(read >= 0, self.size - 1), numbers)
        parents = self.parents.gather(1, chosen)
        parents = number.gather(1, parents.clamp(min=0)).where(there & (parents >= 0), PAD)
        tokens = self.tokens.gather(1, chosen).where(there, PAD)
        return TokenTree(tokens, parents, confidence=self.confidence.gather(1, chosen)), read

    def beside(self, known: TokenTree, count: int) -> tuple[TokenTree, Int[Tensor, "batch nodes"]]:
        """The nodes that were read as they stand, and the most valuable of the others up to `count` in all."""
        left = self.worth.where(self.read < 0, 0.0)
        free = (count - known.valid.sum(1)).clamp(min=0).minimum((left > 0).sum(1))
        chosen = left.argsort(dim=1, descending=True, stable=True)[:, : int(free.max())]
        there = torch.arange(chosen.shape[1], device=chosen.device) < free[:, None]
        tokens, parents = (table.gather(1, chosen).where(there, PAD) for table in (self.tokens, self.parents))
        read = torch.arange(known.nodes, device=tokens.device).expand_as(known.tokens)
        # what was read has a place each; everything else falls into one behind them
        sure = self.worth.new_zeros(len(tokens), known.nodes + 1)
        sure.scatter_(1, self.read.where(self.read >= 0, known.nodes), self.confidence)
        tree = TokenTree(
            torch.cat([known.tokens, tokens], 1),
            torch.cat([known.parents, parents], 1),
            confidence=torch.cat([sure[:, :-1], self.confidence.gather(1, chosen)], 1),
        )
        return tree, torch.cat([read, torch.full_like(tokens, -1)], 1)
