"""Example of a custom drafter: it repeats the last token."""

import torch

from specdec.decoding.protocols import DraftState, Session
from specdec.trees.tree import TokenTree


class LastToken:
    """Propose a chain that repeats the root's token.

    Args:
        depth: drafted tokens per step.
    """

    def __init__(self, depth: int = 2) -> None:
        self.max_nodes = depth + 1

    def start(self, session: Session) -> None:
        self._device = session.target.device

    def propose(self, state: DraftState) -> TokenTree:
        roots = torch.tensor([[row[-1]] for row in state.rows], device=self._device)
        parents = torch.arange(-1, self.max_nodes - 1, device=self._device)
        return TokenTree(roots.repeat(1, self.max_nodes), parents.repeat(len(roots), 1))
