"""Grow a tree from the hidden state of the last accepted node, one head per level."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drafters.eagle.layers import EagleLayers
from drafters.hydra_heads.heads import DRAFTER, HydraHeads, load_heads
from drafters.medusa.heads import fresh_heads, output_layer
from drafters.shared.binding import Binding
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import ConfidentTree
from specdec.decoding.protocols import DraftState, Session, Size, Traits
from specdec.errors import InputError
from specdec.model.runtime import linear
from specdec.model.target import TargetModel
from specdec.training.saving import training_tokens
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree


class Hydra:
    """A drafter with Hydra heads.

    Args:
        heads: a folder with trained heads; `auto` for the heads shipped for the target; `fresh` for untrained heads,
            which all guess the target's next token; or a loaded module.
        depth, beam, nodes, threshold: as in `DynamicTree` (arXiv 2406.16858). A beam of 1 drafts a chain.
        children: `top_k`; or `with_replacement`, which draws a chain from q at a temperature above 0.
        storage: format of the fp32 weights of the heads and of the draft vocabulary on a CPU with fast products:
            `stored`, `bf16`, `int8` or `int4`.

    Raises:
        InputError: an option out of range. `start` raises it if the heads are for another target, or if there are
            fewer of them than `depth`.
    """

    def __init__(
        self,
        heads: str | HydraHeads = "auto",
        depth: int = 4,
        beam: int = 4,
        nodes: int = 7,
        threshold: float = 0.1,
        children: str = "top_k",
        storage: str = "stored",
    ) -> None:
        self.heads, self.tree, self._storage = heads, ConfidentTree(depth, beam, nodes, threshold, children), storage
        self._binding = Binding()
        self.traits = Traits()

    @property
    def max_nodes(self) -> int:
        return self.tree.max_nodes

    def start(self, session: Session) -> None:
        self._binding.to(session.target, self._bind)
        self._sampling = session.sampling
        if self._prefix is not None:
            self._prefix.start(session)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        hidden = state.kept.last_hidden
        if self._prefix is not None:
            hidden = hidden + self._mix(self._prefix.read_text(state).hidden[:, 0])
        root = on_device([row[-1] for row in state.rows], hidden.device)
        head = 0

        def next_logits(known: TokenTree, level: int) -> Tensor:
            nonlocal head
            logits = self._products(head, hidden, self._embed(_paths(known, level, head + 1)))
            head += 1
            return logits

        return self.tree.propose(root, next_logits, state, self._sampling, self._vocabulary, self._vocab)[0]

    def _bind(self, target: TargetModel) -> None:
        heads, learnt = self.heads, None
        if heads == "fresh":
            heads = HydraHeads.of(fresh_heads(target, self.tree.depth).to(target.dtype))
        elif isinstance(heads, str):
            folder = shipped_folder(target, DRAFTER, "drafter.heads") if heads == "auto" else Path(heads)
            heads, learnt = load_heads(folder, target), training_tokens(folder)
        heads.require_fits(target)
        if heads.heads < self.tree.depth:
            expected, fix = f"at most {heads.heads}, as there are heads", "lower it, or train more heads"
            raise InputError("drafter.depth", expected=expected, got=self.tree.depth, fix=fix)
        self.traits = Traits(size=Size.of(heads, learnt))
        self._products = HydraProducts(heads, target, self._storage)
        self._prefix = None
        if heads.prefix is not None:
            self._prefix = EagleLayers(heads.prefix, target, self._storage)
            self._mix = linear(heads.mix.to(target.dtype), fast=target.runtime is not None, storage=self._storage)
        self._vocabulary, self._vocab = heads.vocabulary, target.vocab_size
        self._embed = target.model.get_input_embeddings()


class HydraProducts:
    """Compute the logits of one head for a level of the tree.

    The weights are those of `heads` and of the target, not copies, except for the rows of a draft vocabulary.

    Args:
        heads: the heads.
        target: the model to draft for.
        storage: as in `specdec.model.runtime.linear`.
    """

    def __init__(self, heads: HydraHeads, target: TargetModel, storage: str) -> None:
        product = partial(linear, fast=target.runtime is not None, storage=storage)
        rows = heads.output_rows(target)
        self._joins = [product(heads.joined(head)) for head in range(heads.heads)]
        self._blocks = [
            [product(w, b) for w, b in zip(heads.weight[:, head], heads.bias[:, head], strict=True)]
            for head in range(heads.heads)
        ]
        if heads.output is not None:
            self._outputs = [product(weight) for weight in rows]
        elif heads.vocabulary is not None:
            self._outputs = [product(rows[0], heads.output_bias(target))] * heads.heads
        else:
            self._outputs = [output_layer(target)] * heads.heads
        self._dtypes = heads.join.dtype, rows[0].dtype

    def __call__(
        self, head: int, hidden: Float[Tensor, "batch dim"], path: Float[Tensor, "batch level read dim"]
    ) -> Float[Tensor, "batch level rows"]:
        ours, output = self._dtypes
        x: Tensor = hidden.to(ours)[:, None] + self._joins[head](path.to(ours).flatten(2))
        for block in self._blocks[head]:
            x = x + F.silu(block(x))
        logits: Tensor = self._outputs[head](x.to(output))
        return logits


def _paths(known: TokenTree, level: int, length: int) -> Int[Tensor, "batch level length"]:
    """Return the tokens from the root to each node of the last level. Undefined for padding."""
    at = torch.arange(known.nodes - level, known.nodes, device=known.tokens.device).expand(len(known.tokens), -1)
    tokens = []
    for _ in range(length):
        tokens.append(known.tokens.gather(1, at).clamp(min=0))
        at = known.parents.gather(1, at).clamp(min=0)
    return torch.stack(tokens[::-1], -1)
