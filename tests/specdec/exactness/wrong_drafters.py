"""Drafters that spoil the text's distribution, each by one mistake. The proof must find every one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.decoding.grow_fixed import choose_children
from specdec.decoding.protocols import DraftState, Session
from specdec.decoding.sampling import Streams
from specdec.trees.tree import TokenTree


class Sampled:
    """Two children of the root, drawn from a q of its own; right as it stands."""

    max_nodes = 3

    def start(self, session: Session) -> None:
        self._vocab = session.target.vocab_size

    def q(self, state: DraftState) -> Tensor:
        rising = torch.arange(1, self._vocab + 1, dtype=torch.float64)
        return (rising / rising.sum()).repeat(len(state.rows), 1)

    def tree(self, state: DraftState, children: Tensor, q: Tensor) -> TokenTree:
        root = torch.tensor([[row[-1]] for row in state.rows])
        parents = torch.tensor([-1, 0, 0])[: 1 + children.shape[1]].repeat(len(root), 1)
        probs = torch.stack([q, torch.zeros_like(q), torch.zeros_like(q)], 1)[:, : parents.shape[1]]
        return TokenTree(torch.cat([root, children], 1), parents, probs)

    def propose(self, state: DraftState) -> TokenTree:
        q = self.q(state)
        return self.tree(state, choose_children(q, 2, "with_replacement", state.draws(3), 1), q)


class OtherProbs(Sampled):
    """Returns a q at another temperature than the one it sampled from."""

    def propose(self, state: DraftState) -> TokenTree:
        tree, flat = super().propose(state), self.q(state).sqrt()
        return self.tree(state, tree.tokens[:, 1:], flat / flat.sum(-1, keepdim=True))


class Reranked(Sampled):
    """Draws two children and puts the likelier one first."""

    def propose(self, state: DraftState) -> TokenTree:
        tree = super().propose(state)
        return self.tree(state, tree.tokens[:, 1:].sort(1, descending=True).values, self.q(state))


class BestOfTwo(Sampled):
    """Draws two children and proposes the likelier one only, as if it had been drawn."""

    def propose(self, state: DraftState) -> TokenTree:
        tree = super().propose(state)
        return self.tree(state, tree.tokens[:, 1:].amax(1, keepdim=True), self.q(state))


class Peeks(Sampled):
    """Draws its children with the numbers by which the rule will accept them."""

    def propose(self, state: DraftState) -> TokenTree:
        draws = state.streams.draws([len(row) for row in state.rows], Streams.ACCEPT, 3)
        return self.tree(state, choose_children(self.q(state), 2, "with_replacement", draws, 1), self.q(state))


class OneSlot(Sampled):
    """Decides both children by slot 1: they are always equal."""

    def propose(self, state: DraftState) -> TokenTree:
        draws, q = state.draws(3), self.q(state)
        return self.tree(state, torch.stack([draws.categorical(q, 1) for _ in range(2)], 1), q)


class OwnDice(Sampled):
    """Draws from torch's global generator."""

    def propose(self, state: DraftState) -> TokenTree:
        q = self.q(state)
        return self.tree(state, torch.multinomial(q, 2, replacement=True), q)


class CutByWhatWasDrawn(Sampled):
    """Leaves the second child out if the first was an unlikely one: q of what is left is another."""

    def propose(self, state: DraftState) -> TokenTree:
        tree = super().propose(state)
        children = tree.tokens[:, 1:]
        keep = torch.where((children[:, :1] == 0), children[:, 1:], children[:, :1])
        return self.tree(state, keep, self.q(state))


WRONG: list[Callable[[], Sampled]] = [OtherProbs, BestOfTwo, Peeks, OneSlot, OwnDice, CutByWhatWasDrawn, Reranked]
