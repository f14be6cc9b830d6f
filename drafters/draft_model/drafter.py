"""A smaller causal LM with the same tokens drafts a chain or a tree (arXiv 2211.17192, 2305.09781).

Its KV cache holds the committed text; each step it is cropped to that, fed what is missing, and grown
level by level under a tree mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.draft_model.recipe import is_student, load_student
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import DynamicTree
from specdec.decoding.grow_fixed import TreeShape, already_read, level_q, level_q_among, over_all_tokens
from specdec.decoding.protocols import DraftState, Rows, Session, Size
from specdec.model.load import load
from specdec.model.runtime.quantised import STORED
from specdec.model.students import Student
from specdec.model.target import TargetModel
from specdec.model.vocabularies import SAME, SharedTokens, require_vocabulary, shared_tokens
from specdec.training.saving import training_tokens
from specdec.trees.tree import TokenTree


class DraftModel:
    """model: a loaded model, or a name for `specdec.model.load.load` with its options; or a student of the target: a
    module, a folder that `experiments.train drafter=draft_model` wrote, or `auto` for the one shipped.

    nodes: draft the most probable nodes, so many of them, in a tree that follows the draft model's confidence
    (`DynamicTree`; depth, beam, threshold as there; children are the top-k).
    widths: draft a tree of this fixed shape instead; children: how its nodes are chosen (`TreeShape`; at temperature 0,
    where q is one-hot, always the top-k). Neither: a chain of four.

    storage: as what the fast products of a CPU keep fp32 weights: `stored`, `bf16`, `int8` or `int4`. None: `int8` for
    a student, `stored` for a model loaded by name.
    vocabulary: `same` refuses a model whose tokens differ from the target's; `shared` drafts only those that both have
    (`shared_tokens`). Logits may be padded differently with either.

    Past the model's context window nothing is drafted, and a warning says so once.
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
        storage: str | None = None,
        vocabulary: str = SAME,
        **load_options: Any,
    ) -> None:
        require_vocabulary(vocabulary)
        self.shape = TreeShape([1] * 4 if widths is None else widths, children)
        self.dynamic = None if nodes is None or widths is not None else DynamicTree(depth, beam, nodes, threshold)
        self._student: Student | str | None = None
        self._storage = storage or "int8"
        if isinstance(model, TargetModel):
            self.model = model
        elif isinstance(model, Student) or model == "auto" or is_student(model):
            self._student = model  # it needs what the target has
        else:
            self.model = load(model, storage=storage or STORED, option="drafter.model", **load_options)
        self._compare, self._tokens = vocabulary, SharedTokens()
        self._vocabulary: Tensor | None = None
        self._said: set[str] = set()  # what has been warned of
        self._target: TargetModel | None = None

    @property
    def size(self) -> Size:
        return self._size

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
        self._cache = self.model.lend_cache(self, len(session.rows), session.capacity + self._most_read)
        self.model.prefill(self._cache, self._readable(session.rows))
        self._read: Tensor | None = None  # of each node of the last tree, how many were read before it; -1: it was not

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        root = torch.tensor([row[-1] for row in state.rows], device=self.model.device)
        self._keep_accepted(state)
        room = [min(room, self._window_room(len(row))) for room, row in zip(state.room, state.rows, strict=True)]
        if max(room) <= 1:
            self._read = None
            return TokenTree.root_only(root)
        at_root = self._feed_missing(self._readable(state.rows))

        def next_q(known: TokenTree, level: int) -> Tensor:
            logits = self._tokens.of_draft(at_root if known.nodes == 1 else self._read_level(known, level))
            if self.dynamic is not None:
                return level_q_among(logits, self._vocabulary, self._vocab, known, state.rows, self._sampling)
            logits = over_all_tokens(logits, self._vocabulary, self._vocab)
            return level_q(logits, known, state.rows, self._sampling)

        if self.dynamic is not None:
            tree, self._read = self.dynamic.grow(root, next_q, room, vocabulary=self._vocabulary)
            return tree
        how = "top_k" if self._sampling.greedy else self.shape.children
        depth = min(self.shape.depth, max(room) - 1)
        tree = self.shape.grow(root, next_q, state.draws(self.max_nodes), depth, how)
        order, leaves = torch.arange(tree.nodes, device=root.device), [1, *self.shape.levels][depth]
        self._read = order.where(order < tree.nodes - leaves, -1).expand_as(tree.tokens)
        if min(room) > depth:
            return tree
        return tree.clip(torch.tensor([max(r - 1, 0) for r in room], device=root.device))

    def _bind(self, target: TargetModel) -> None:
        self._target, self._vocab = target, target.vocab_size
        if self._student is None:
            self._tokens = shared_tokens(target, self.model, self._compare)
            self._vocabulary = self._tokens.ids
            self._size = Size.of(self.model.model, None)
            return
        student, tokens = self._student, None
        if isinstance(student, str):
            shipped = student == "auto"
            folder = shipped_folder(target, "draft_model", "drafter.model") if shipped else Path(student)
            student, tokens = load_student(folder, target), training_tokens(folder)
        self._size = Size.of(student, tokens)
        runtime = "stock" if target.runtime is None and target.device.type == "cpu" else "auto"
        kernel, self._vocabulary = target.kernel.name, student.vocabulary
        self.model = TargetModel(
            student.as_model(target, self._storage), name="student", kernel=kernel, runtime=runtime
        )

    def _window_room(self, length: int) -> int:
        """How many tokens may follow a text of that length, as `DraftState.room` counts them, if no node whose children
        are drafted stands past the context window."""
        window = self.model.context_window
        return length + self.max_nodes if window is None else max(window - length + 2, 1)

    def _readable(self, rows: Rows) -> Rows:
        """The rows as the model reads them: a stand-in for each token that it lacks; of a text past its context window
        the first two tokens alone, because every row of a batch must read one, behind another."""
        window, name = self.model.context_window, self.model.name
        inside = [row if window is None or len(row) <= window else row[:2] for row in rows]
        fed = [self._tokens.fed(row) for row in inside]
        if any(len(row) < len(whole) for row, whole in zip(inside, rows, strict=True)):
            self._warn_once(f"{name} drafts nothing past its context window of {window} tokens")
        if fed != [list(row) for row in inside]:
            self._warn_once(f"{name} lacks tokens of the text and reads id {self._tokens.stand_in} in their place")
        return fed

    def _warn_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=3)

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
        places, counts = already_read(self._read - 1, state.kept.path[:, 1:])
        self._cache.keep(places, counts)

    def _feed_missing(self, rows: Rows) -> Tensor:
        """Read the committed tokens not yet cached, the root at least; logits [batch 1 vocab] at the root."""
        self._cache.crop([min(n, len(row) - 1) for n, row in zip(self._cache.host_lengths, rows, strict=True)])
        missing = [row[n:] for n, row in zip(self._cache.host_lengths, rows, strict=True)]
        return self.model.prefill(self._cache, missing).logits
