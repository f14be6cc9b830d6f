"""Growing a token tree level by level from a drafter's distribution q.

What drafters share that have a q: the shape of the tree, and how children are chosen. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.protocols import DraftState
from specdec.sampling import Draws, SamplingParams, draw_without_replacement
from specdec.tree import PAD, TokenTree, histories

CHILDREN = ("with_replacement", "without_replacement", "top_k")

NextQ = Callable[[TokenTree, int], Tensor]  # (tree so far, nodes in its last level) -> q [batch level vocab]


def require_children(children: str) -> None:
    """Refuse an unknown way of choosing children.

    Raises:
        InputError: and names those there are.
    """
    if children not in CHILDREN:
        expected = f"one of {', '.join(CHILDREN)}"
        raise InputError("drafter.children", expected=expected, got=repr(children), fix="choose one")


def require_ranked(tree: TokenTree, drafter: object, what: str) -> None:
    """Refuse a tree whose children were drawn, where nodes are left out: q would no longer say how they came to be.

    Raises:
        InputError: and names the drafter.
    """
    if tree.probs is not None:
        name, expected = type(drafter).__name__, "drafters whose children are chosen by rank"
        raise InputError(what, expected=expected, got=f"{name}, which drew them", fix=f"give {name} children=top_k")


class TreeShape:
    """A tree whose nodes at each depth all have the same number of children.

    widths: children per node at each depth ([1, 1, 1, 1] is a chain of four, [3, 2] a tree of 3 + 6 nodes);
    children: how they are chosen. `with_replacement` or `without_replacement`: drawn from q, independently or
    never the same token twice; `top_k`: the most likely ones.

    Raises:
        InputError: no widths, one below 1, or an unknown way of choosing.
    """

    def __init__(self, widths: Sequence[int], children: str) -> None:
        if not widths or min(widths) < 1:
            raise InputError(
                "drafter.widths", expected="a list of integers >= 1", got=list(widths), fix="try [1,1,1,1]"
            )
        require_children(children)
        self.widths, self.children = list(widths), children
        self.levels = list(accumulate(widths, mul))  # nodes at depth 1, 2, ...
        parents, before, start = [-1], 0, 1
        for width, level in zip(self.widths, self.levels, strict=True):
            parents += [before + i // width for i in range(level)]
            before, start = start, start + level
        self.parents = torch.tensor(parents)

    @property
    def depth(self) -> int:
        return len(self.widths)

    @property
    def nodes(self) -> int:
        """Root included."""
        return len(self.parents)

    def grow(
        self,
        root: Int[Tensor, " batch"],
        next_q: NextQ,
        draws: Draws,
        depth: int,
        how: str,
        threshold: float = 0.0,
    ) -> TokenTree:
        """The tree down to `depth`; `how` overrides `children` (at temperature 0 it must be `top_k`).

        Slot i of `draws` decides the token of node i. Where q has fewer tokens than there are children to
        draw without replacement, the tree has padding. A node whose path was drawn with less probability than
        `threshold` stays, and gets no children: whether it does depends on nothing below it, so that q stays what
        children were drawn from.
        """
        tokens, q = root[:, None], []
        path = torch.ones_like(tokens, dtype=torch.float32)
        confidence = [path]
        for width, level in zip(self.widths[:depth], [1, *self.levels][:depth], strict=True):
            closed = (tokens[:, -level:] == PAD) | (path < threshold)
            if threshold and bool(closed.all()):
                break
            q.append(next_q(self._tree(tokens), level))
            children = _children(q[-1], closed, width, how, draws, tokens.shape[1])
            tokens = torch.cat([tokens, children], 1)
            drawn = q[-1].gather(2, children.clamp(min=0).unflatten(1, (level, width)))
            path = (path[..., None] * drawn).flatten(1)
            confidence.append(drawn.flatten(1).float())
        tree = self._tree(tokens)
        if how == "top_k" or not q:
            return replace(tree, confidence=torch.cat(confidence, 1))
        inner = sum(level.shape[1] for level in q)
        leaves = q[-1].new_zeros(()).expand(len(root), tree.nodes - inner, q[-1].shape[-1])
        replacement = how == "with_replacement" or max(self.widths) == 1  # an only child has no siblings
        return TokenTree(tree.tokens, tree.parents, torch.cat([*q, leaves], 1), replacement)

    def _tree(self, tokens: Int[Tensor, "batch nodes"]) -> TokenTree:
        parents = self.parents[: tokens.shape[1]].to(tokens.device)
        return TokenTree(tokens, torch.where(tokens >= 0, parents, PAD))


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
        room: as in `DraftState`; a row's tree is what it would be alone.
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


def _children(
    q: Float[Tensor, "batch level vocab"],
    closed: Bool[Tensor, "batch level"],
    width: int,
    how: str,
    draws: Draws,
    first: int,
) -> Int[Tensor, "batch children"]:
    """Tokens of the next level, whose nodes are numbered from `first`; a closed node has no children."""
    groups = []
    for place, (q_parent, is_closed) in enumerate(zip(q.unbind(1), closed.unbind(1), strict=True)):
        tokens = choose_children(q_parent, width, how, draws, first + place * width)
        groups.append(tokens.masked_fill(is_closed[:, None], PAD))
    return torch.cat(groups, 1)


def choose_children(
    q: Float[Tensor, "batch vocab"], width: int, how: str, draws: Draws, first: int
) -> Int[Tensor, "batch width"]:
    """Tokens of one node's children, which are numbered from `first`; `how`: one of `CHILDREN`."""
    if how == "top_k":
        return q.topk(width, dim=-1).indices
    if how == "without_replacement":
        return draw_without_replacement(q, width, draws, first)
    return torch.stack([draws.categorical(q, first + i) for i in range(width)], 1)


def level_q(
    logits: Float[Tensor, "batch level vocab"],
    known: TokenTree,
    rows: Sequence[Sequence[int]],
    sampling: SamplingParams,
) -> Float[Tensor, "batch level vocab"]:
    """q after each node of the known tree's last level: what children are drawn from, penalties for each node's own
    text included. At temperature 0, where that would be one-hot, what ranks them: q at temperature 1."""
    batch, level, vocab = logits.shape
    before = None
    if sampling.needs_history:
        every, last = histories(known, rows), range(known.nodes - level, known.nodes)
        before = [every[r * known.nodes + node] for r in range(batch) for node in last]
    flat = logits.reshape(-1, vocab)
    q = sampling.scores(flat, before).softmax(-1) if sampling.greedy else sampling.probabilities(flat, before)
    return q.view(batch, level, vocab)


def level_q_among(
    logits: Float[Tensor, "batch level rows"],
    vocabulary: Int[Tensor, " rows"] | None,
    vocab: int,
    known: TokenTree,
    rows: Sequence[Sequence[int]],
    sampling: SamplingParams,
) -> Float[Tensor, "batch level rows"]:
    """`level_q` of a draft vocabulary's tokens alone, as `DynamicTree` ranks them: without writing out the zeros."""
    if vocabulary is None or not sampling.needs_history:
        return level_q(logits, known, rows, sampling)
    return level_q(over_all_tokens(logits, vocabulary, vocab), known, rows, sampling)[..., vocabulary]


def over_all_tokens(
    logits: Float[Tensor, "batch level rows"], vocabulary: Int[Tensor, " rows"] | None, vocab: int
) -> Float[Tensor, "batch level vocab"]:
    """Logits of a draft vocabulary's rows among those of all tokens; the others are impossible."""
    if vocabulary is None:
        return logits
    whole = logits.new_full((*logits.shape[:2], vocab), -torch.inf)
    return whole.index_copy(2, vocabulary, logits)


def already_read(
    read: Int[Tensor, "batch nodes"], path: Int[Tensor, "batch kept"]
) -> tuple[Int[Tensor, "batch kept"], list[int]]:
    """How far a drafter's own cache reaches along an accepted path: the place in its block of each node it has read, -1
    from the first it has not; and how many that are. read: each node's place, -1. Nodes on the path that are not of its
    tree (a union's other drafters proposed them) are numbered beyond it."""
    inside = (path >= 0) & (path < read.shape[1])
    places = read.gather(1, path.clamp(0, read.shape[1] - 1)).where(inside, PAD)
    places = places.where((places >= 0).int().cumprod(1).bool(), PAD)
    return places, (places >= 0).sum(1).tolist()
