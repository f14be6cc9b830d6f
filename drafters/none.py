"""Draft nothing: autoregressive decoding through the speculative loop, τ = 1."""

from __future__ import annotations

from specdec.decoding.protocols import DraftState, Session
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree


class NoDrafter:
    """Propose the root alone. Its speedup over `autoregressive()` shows the overhead of the loop."""

    max_nodes = 1

    def start(self, session: Session) -> None:
        self._device = session.target.device

    def propose(self, state: DraftState) -> TokenTree:
        return TokenTree.root_only(on_device([row[-1] for row in state.rows], self._device))
