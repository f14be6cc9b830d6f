"""The drafter: a tree grown entry by entry from the hidden state of the last accepted node."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from drafters.eagle.head import DRAFTER, EagleHead, fresh_head, load_head
from drafters.shipped import shipped_folder
from specdec.drafting import ConfidentTree
from specdec.protocols import DraftState, Session, Weights
from specdec.runtime import linear
from specdec.target import PREFILL_CHUNK, TargetModel, TargetOutput
from specdec.training.saving import training_tokens
from specdec.tree import PAD, TokenTree


class Eagle:
    """head: a folder with a trained head; `auto`, the one shipped for the target; `fresh`, an untrained one;
    or a loaded one. depth, beam, nodes,
    threshold: see `DynamicTree` (arXiv 2406.16858); a beam of 1 is a chain. children: `top_k`; or, at a temperature
    above 0, a chain drawn from q: `with_replacement`.

    Its cache holds the entries of the committed text, made of the target's own hidden states: drafted entries, made of
    stand-ins, are forgotten after every step, and those that were accepted are made anew.
    """

    def __init__(
        self,
        head: str | EagleHead = "auto",
        depth: int = 5,
        beam: int = 4,
        nodes: int = 12,
        threshold: float = 0.0,
        children: str = "top_k",
    ) -> None:
        self.head, self.tree = head, ConfidentTree(depth, beam, nodes, threshold, children)
        self._target: TargetModel | None = None

    @property
    def max_nodes(self) -> int:
        return self.tree.max_nodes

    @property
    def weights(self) -> Weights:
        return self._weights

    def start(self, session: Session) -> None:
        if session.target is not self._target:  # weights are read once, not for every batch
            self._bind(session.target)
        self._sampling = session.sampling
        most_read = 1 + self.tree.beam * self.tree.depth
        self._cache = self._layers.new_cache(len(session.rows), session.capacity + most_read)

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        at_root = self._read_kept(state)
        root = torch.tensor([row[-1] for row in state.rows], device=self._layers.device)
        hidden = at_root.hidden  # after every node read, in that order

        def next_logits(known: TokenTree, level: int) -> Tensor:
            nonlocal hidden
            if known.nodes == 1:
                return at_root.logits
            out = self._read_level(known, level, hidden)
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
        self._weights = Weights.of(head, learnt)
        head = head.in_precision_of(target)
        fast = target.runtime is not None
        runtime = "stock" if target.device.type == "cpu" and not fast else "auto"
        model, kernel = head.student.as_model(target), target.kernel.name
        self._layers = TargetModel(model, name="eagle", kernel=kernel, runtime=runtime)
        self._join, self._embed = linear(head.join.weight, fast=fast), target.model.get_input_embeddings()
        self._target, self._vocabulary, self._vocab = target, head.vocabulary, target.vocab_size

    def _entries(self, tokens: Tensor, before: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new dim"]:
        joined: Tensor = self._join(torch.cat([self._embed(tokens.clamp(min=0)), before], -1))
        return joined

    def _read_kept(self, state: DraftState) -> TargetOutput:
        """Commit an entry for every token of the text that has none, the root the last: each node kept in the step
        before brings its hidden state and the token after it. Logits and hidden state at the root."""
        counts = (state.verdict.path >= 0).sum(1).tolist()  # none where a row has finished
        width, device = max(counts), self._layers.device
        new = [list(row[len(row) - count :]) for row, count in zip(state.rows, counts, strict=True)]
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)
        assert state.verdict.hidden is not None
        entering = self._entries(tokens, state.verdict.hidden[:, :width])
        logits = hidden = entering.new_empty(())
        for begin in range(0, width, PREFILL_CHUNK):
            part = entering[:, begin : begin + PREFILL_CHUNK]
            inside = torch.tensor([min(max(count - begin, 0), part.shape[1]) for count in counts], device=device)
            ends = (inside[:, None] - 1).clamp(min=0)
            order = torch.arange(part.shape[1], device=device)
            positions = self._cache.lengths[:, None] + order
            there = order < inside[:, None].clamp(min=1)  # one of a row that has none here, not to be kept
            out = self._layers.upper(self._cache, torch.where(there, 0, PAD), part, positions, None, 0, ends)
            self._cache.advance(inside.tolist())
            reached = torch.ones_like(ends, dtype=torch.bool) if begin == 0 else inside[:, None] > 0
            at_end = out.hidden.gather(1, ends[..., None].expand(-1, -1, out.hidden.shape[-1]))
            logits, hidden = out.logits.where(reached[..., None], logits), at_end.where(reached[..., None], hidden)
        return TargetOutput(logits, hidden)

    def _read_level(self, known: TokenTree, level: int, hidden: Float[Tensor, "batch read dim"]) -> TargetOutput:
        """The last level's nodes, behind the stand-ins after their parents. The root is committed, so the block begins
        with the nodes of depth 1; padding is read too, and nobody sees it."""
        parents = known.parents[:, -level:].clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        entering = self._entries(known.tokens[:, -level:], hidden.gather(1, parents))
        positions = self._cache.lengths[:, None] + (known.depth[:, 1:] - 1).clamp(min=0)
        tokens, mask = known.tokens[:, -level:], known.ancestor_mask[:, -level:, 1:]
        return self._layers.upper(self._cache, tokens, entering, positions, mask, 0)
