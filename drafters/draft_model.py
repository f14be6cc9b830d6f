"""A smaller causal LM with the same tokens drafts a chain or a tree (arXiv 2211.17192, 2305.09781).

Its KV cache holds the committed text; each step it is cropped to that, fed what is missing, and grown
level by level under a tree mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.distilled import is_student, load_student
from drafters.shipped import shipped_folder
from specdec.drafting import TreeShape, already_read, level_q, level_q_among, over_all_tokens
from specdec.dynamic_tree import DynamicTree
from specdec.models import load, require_same_tokens
from specdec.protocols import DraftState, Rows, Session, Weights
from specdec.runtime.quantised import STORED
from specdec.students import Student
from specdec.target import TargetModel
from specdec.training.saving import training_tokens
from specdec.tree import TokenTree


class DraftModel:
    """model: a loaded model, or a name for `specdec.models.load` with its options; or a student of the target: a
    module, a folder that `experiments.distill` wrote, or `auto` for the one shipped.

    nodes: draft the most probable nodes, so many of them, in a tree that follows the draft model's confidence
    (`DynamicTree`; depth, beam, threshold as there; children are the top-k).
    widths: draft a tree of this fixed shape instead; children: how its nodes are chosen (`TreeShape`; at temperature 0,
    where q is one-hot, always the top-k). Neither: a chain of four.

    weights: as what the fast products of a CPU keep fp32 weights: `stored`, `bf16`, `int8` or `int4`. None: `int8` for
    a student, `stored` for a model loaded by name.
    """

    def __init__(
        self,
        model: TargetModel | Student | str = "auto",
        widths: Sequence[int] | None = None,
        children: str = "with_replacement",
        nodes: int | None = None,
        depth: int = 6,
        beam: int = 4,
        threshold: float = 0.0,
        weights: str | None = None,
        **load_options: Any,
    ) -> None:
        self.shape = TreeShape([1] * 4 if widths is None else widths, children)
        self.dynamic = None if nodes is None or widths is not None else DynamicTree(depth, beam, nodes, threshold)
        self._student: Student | str | None = None
        self._kept_as = weights or "int8"
        if isinstance(model, TargetModel):
            self.model = model
        elif isinstance(model, Student) or model == "auto" or is_student(model):
            self._student = model  # it needs what the target has
        else:
            self.model = load(model, weights=weights or STORED, **load_options)
        self._vocabulary: Tensor | None = None
        self._target: TargetModel | None = None

    @property
    def weights(self) -> Weights:
        return self._weights

    @property
    def max_nodes(self) -> int:
        return self.shape.nodes if self.dynamic is None else self.dynamic.nodes + 1

    @property
    def _most_read(self) -> int:
        """Nodes in the cache beside the committed text, at most."""
        return self.shape.nodes if self.dynamic is None else 1 + self.dynamic.beam * self.dynamic.depth

    def start(self, session: Session) -> None:
        if session.target is not self._target:  # weights are read once, not for every batch
            self._bind(session.target)
        self._sampling = session.sampling
        self._cache = self.model.new_cache(len(session.rows), session.capacity + self._most_read)
        self.model.prefill(self._cache, session.rows)
        self._read: Tensor | None = None  # of each node of the last tree, how many were read before it; -1: it was not

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        self._keep_accepted(state)
        at_root = self._feed_missing(state.rows)

        def next_q(known: TokenTree, level: int) -> Tensor:
            logits = at_root if known.nodes == 1 else self._read_level(known, level)
            if self.dynamic is not None:
                return level_q_among(logits, self._vocabulary, self._vocab, known, state.rows, self._sampling)
            logits = over_all_tokens(logits, self._vocabulary, self._vocab)
            return level_q(logits, known, state.rows, self._sampling)

        root = torch.tensor([row[-1] for row in state.rows], device=self.model.device)
        if self.dynamic is not None:
            tree, self._read = self.dynamic.grow(root, next_q, state.room, vocabulary=self._vocabulary)
            return tree
        how = "top_k" if self._sampling.greedy else self.shape.children
        depth = max(0, min(self.shape.depth, max(state.room) - 1))
        tree = self.shape.grow(root, next_q, state.draws(self.max_nodes), depth, how)
        order, leaves = torch.arange(tree.nodes, device=root.device), [1, *self.shape.levels][depth]
        self._read = order.where(order < tree.nodes - leaves, -1).expand_as(tree.tokens)
        return tree

    def _bind(self, target: TargetModel) -> None:
        self._target, self._vocab = target, self.model.vocab_size if self._student is None else target.vocab_size
        if self._student is None:
            require_same_tokens(target, self.model)
            self._weights = Weights.of(self.model.model, None)
            return
        student, tokens = self._student, None
        if isinstance(student, str):
            shipped = student == "auto"
            folder = shipped_folder(target, "draft_model", "drafter.model") if shipped else Path(student)
            student, tokens = load_student(folder, target), training_tokens(folder)
        self._weights = Weights.of(student, tokens)
        runtime = "stock" if target.runtime is None and target.device.type == "cpu" else "auto"
        kernel, self._vocabulary = target.kernel.name, student.vocabulary
        self.model = TargetModel(
            student.as_model(target, self._kept_as), name="student", kernel=kernel, runtime=runtime
        )

    def _read_level(self, known: TokenTree, level: int) -> Tensor:
        """Logits [batch level vocab] after the last level's nodes; the levels before are cached.

        The root is committed, so the block begins with the nodes of depth 1. Padding is read too, and nobody sees it.
        """
        positions = self._cache.lengths[:, None] + (known.depth[:, 1:] - 1).clamp(min=0)
        mask = known.ancestor_mask[:, -level:, 1:]
        return self.model.forward(self._cache, known.tokens[:, -level:], positions, mask).logits

    def _keep_accepted(self, state: DraftState) -> None:
        """Commit the accepted nodes the model has already read: none of the last level, and no other drafter's."""
        if self._read is None:
            return
        # block entry i of the cache is the node read as number i + 1: the root was committed before
        places, counts = already_read(self._read - 1, state.verdict.path[:, 1:])
        self._cache.keep(places, counts)

    def _feed_missing(self, rows: Rows) -> Tensor:
        """Read the committed tokens not yet cached, the root at least; logits [batch 1 vocab] at the root."""
        self._cache.crop([min(n, len(row) - 1) for n, row in zip(self._cache.host_lengths, rows, strict=True)])
        missing = [row[n:] for n, row in zip(self._cache.host_lengths, rows, strict=True)]
        return self.model.prefill(self._cache, missing).logits
