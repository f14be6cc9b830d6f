"""The drafter: nodes go through the target's first layers level by level, and the verifier takes them up from there."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drafters.early_exit.adapter import ExitAdapter, load_adapter
from drafters.early_exit.exits import AdaptedExit, Exit, PlainExit
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import ConfidentTree
from specdec.decoding.protocols import DraftState, Session, Size
from specdec.model.target import TargetModel
from specdec.training.saving import training_tokens
from specdec.trees.tree import TokenTree


class EarlyExit:
    """Self-speculation (LayerSkip, arXiv 2404.16710): keys, values and hidden states of the drafted nodes are the
    target's own, and nothing is computed or stored twice.

    exit_layer: how many of the target's layers draft; adapter: `plain`, the target's final norm and output layer read
        what they give (for models trained to exit early); a folder with a trained adapter; `auto`, the one shipped for
        the target; or a loaded module.
    depth, beam, nodes, threshold: see `DynamicTree`; a beam of 1 is a chain. Nodes that were read are proposed even
        beyond `nodes`: they cost least to verify.
    children: `top_k`; or, at a temperature above 0, a chain drawn from q: `with_replacement`.

    In a batch, nodes of a `top_k` tree are numbered behind what was read of the longest row, and random numbers go by a
    node's number: a row's sampled text then has the distribution, not always the very tokens, it would have alone.
    """

    def __init__(
        self,
        exit_layer: int,
        adapter: str | ExitAdapter = "plain",
        depth: int = 4,
        beam: int = 1,
        nodes: int = 4,
        threshold: float = 0.0,
        children: str = "top_k",
    ) -> None:
        self.exit_layer: int | None = exit_layer
        self.adapter, self.tree = adapter, ConfidentTree(depth, beam, nodes, threshold, children)
        self._target: TargetModel | None = None

    @property
    def max_nodes(self) -> int:
        return 1 + self.tree.beam * (self.tree.depth - 1) + self.tree.nodes  # what was read, and the best beside it

    @property
    def size(self) -> Size:
        return self._size

    def start(self, session: Session) -> None:
        assert session.begin is not None, "early exit needs a verifier that lends its first layers"
        if session.target is not self._target:  # weights are read once, not for every batch
            self._exit, self._target = self._made_for(session.target), session.target
        self._begin, self._sampling = session.begin, session.sampling
        self._exit.start(len(session.rows), session.capacity)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        self._exit.catch_up(state.kept)

        assert self._target is not None

        def next_logits(known: TokenTree, level: int) -> Tensor:
            return self._exit.logits(known, self._begin(known, state.rows, level))

        root = torch.tensor([row[-1] for row in state.rows], device=self._target.device)
        vocabulary, vocab = self._exit.vocabulary, self._target.vocab_size
        tree, read = self.tree.propose(root, next_logits, state, self._sampling, vocabulary, vocab, keep_read=True)
        self._exit.remember(read)
        return tree

    def _made_for(self, target: TargetModel) -> Exit:
        assert self.exit_layer is not None
        target.require_layer(self.exit_layer)
        self._size = Size()
        if self.adapter == "plain":
            return PlainExit(target)
        adapter, tokens = self.adapter, None
        if isinstance(adapter, str):
            shipped = adapter == "auto"
            folder = shipped_folder(target, "early_exit", "drafter.adapter") if shipped else Path(adapter)
            adapter, tokens = load_adapter(folder, target), training_tokens(folder)
        adapter.require_trained_for(self.exit_layer)
        self._size = Size.of(adapter, tokens)
        return AdaptedExit(adapter, target)
