"""Grow a tree entry by entry from the hidden state of the last accepted node."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drafters.eagle.head import DRAFTER, EagleHead, fresh_head, load_head
from drafters.eagle.layers import EagleLayers
from drafters.shared.binding import Binding
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import ConfidentTree
from specdec.decoding.protocols import DraftState, Session, Size, Traits
from specdec.model.target import TargetModel
from specdec.training.saving import training_tokens
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree


class Eagle:
    """A drafter with an EAGLE head.

    Args:
        head: a folder with a trained head; `auto` for the head shipped for the target; `fresh` for an untrained one; or
            a loaded module.
        depth, beam, nodes, threshold: as in `DynamicTree` (arXiv 2406.16858). A beam of 1 drafts a chain.
        children: `top_k`; or `with_replacement`, which draws a chain from q at a temperature above 0.
        storage: format of the fp32 weights of the head and of the draft vocabulary on a CPU with fast products:
            `stored`, `bf16`, `int8` or `int4`.

    Raises:
        InputError: an option out of range. `start` raises it if the head cannot be loaded or does not fit the target.
    """

    def __init__(
        self,
        head: str | EagleHead = "auto",
        depth: int = 5,
        beam: int = 4,
        nodes: int = 12,
        threshold: float = 0.0,
        children: str = "top_k",
        storage: str = "stored",
    ) -> None:
        self.head, self.tree, self._storage = head, ConfidentTree(depth, beam, nodes, threshold, children), storage
        self._binding = Binding()
        self.traits = Traits()

    @property
    def max_nodes(self) -> int:
        return self.tree.max_nodes

    def start(self, session: Session) -> None:
        self._binding.to(session.target, self._bind)
        self._sampling = session.sampling
        self._layers.start(session, drafted=1 + self.tree.beam * self.tree.depth)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        at_root = self._layers.read_text(state)
        root = on_device([row[-1] for row in state.rows], at_root.hidden.device)
        hidden = at_root.hidden  # [batch read dim] the predicted hidden states of the nodes read so far, in order

        def next_logits(known: TokenTree, level: int) -> Tensor:
            nonlocal hidden
            if known.nodes == 1:
                return at_root.logits
            out = self._layers.read_level(known, level, hidden)
            hidden = torch.cat([hidden, out.hidden], 1)
            return out.logits

        return self.tree.propose(root, next_logits, state, self._sampling, self._vocabulary, self._vocab)[0]

    def _bind(self, target: TargetModel) -> None:
        head, learnt = self.head, None
        if head == "fresh":
            head = fresh_head(target)
        elif isinstance(head, str):
            folder = shipped_folder(target, DRAFTER, "drafter.head") if head == "auto" else Path(head)
            head, learnt = load_head(folder, target), training_tokens(folder)
        self.traits = Traits(size=Size.of(head, learnt))
        self._layers = EagleLayers(head, target, self._storage)
        self._vocabulary, self._vocab = head.vocabulary, target.vocab_size
