"""Draft with the target's first layers, level by level; the verifier continues from the exit layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drafters.early_exit.adapter import ExitAdapter, load_adapter
from drafters.early_exit.exits import AdaptedExit, Exit, PlainExit
from drafters.shared.binding import Binding
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import ConfidentTree
from specdec.decoding.protocols import DraftState, Session, Size, Traits
from specdec.model.target import TargetModel
from specdec.training.saving import training_tokens
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree


class EarlyExit:
    """Self-speculation (LayerSkip, arXiv 2404.16710).

    Keys, values and hidden states of the drafted nodes are the target's own, so nothing is computed or stored twice.

    In a batch, the other nodes of a `top_k` tree are numbered after the nodes that the longest row has read, and random
    numbers depend on a node's number. So a row's sampled text has the same distribution as alone, but not always the
    same tokens.

    Args:
        exit_layer: number of the target's layers that draft.
        adapter: `plain` to use the target's final norm and output layer (for models trained to exit early); a folder
            with a trained adapter; `auto` for the adapter shipped for the target; or a loaded module.
        depth, beam, nodes, threshold: as in `DynamicTree`. A beam of 1 drafts a chain. Nodes that the first layers have
            read are proposed in addition to `nodes`, because they cost least to verify.
        children: `top_k`; or `with_replacement`, which draws a chain from q at a temperature above 0.

    Raises:
        InputError: an option out of range. `start` raises it if the adapter cannot be loaded, or does not fit the
            target or the exit layer.
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
        self.traits = Traits(exit_layer)
        self.adapter, self.tree = adapter, ConfidentTree(depth, beam, nodes, threshold, children)
        self._binding = Binding()

    @property
    def max_nodes(self) -> int:
        return (
            1 + self.tree.beam * (self.tree.depth - 1) + self.tree.nodes
        )  # the root, the nodes read, and the best others

    def start(self, session: Session) -> None:
        assert session.begin is not None, "early exit needs a verifier that lends its first layers"
        self._binding.to(session.target, self._bind)
        self._begin, self._sampling = session.begin, session.sampling
        self._exit.start(len(session.rows), session.capacity)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        self._exit.catch_up(state.kept)

        def next_logits(known: TokenTree, level: int) -> Tensor:
            return self._exit.logits(known, self._begin(known, state.rows, level))

        target = self._binding.target
        root = on_device([row[-1] for row in state.rows], target.device)
        vocabulary, vocab = self._exit.vocabulary, target.vocab_size
        tree, read = self.tree.propose(root, next_logits, state, self._sampling, vocabulary, vocab, keep_read=True)
        self._exit.remember(read)
        return tree

    def _bind(self, target: TargetModel) -> None:
        self._exit = self._made_for(target)

    def _made_for(self, target: TargetModel) -> Exit:
        assert self.exit_layer is not None
        target.halves.require_layer(self.exit_layer)
        self.traits = Traits(self.exit_layer)
        if self.adapter == "plain":
            return PlainExit(target)
        adapter, tokens = self.adapter, None
        if isinstance(adapter, str):
            shipped = adapter == "auto"
            folder = shipped_folder(target, "early_exit", "drafter.adapter") if shipped else Path(adapter)
            adapter, tokens = load_adapter(folder, target), training_tokens(folder)
        adapter.require_trained_for(self.exit_layer)
        self.traits = Traits(self.exit_layer, size=Size.of(adapter, tokens))
        return AdaptedExit(adapter, target)
