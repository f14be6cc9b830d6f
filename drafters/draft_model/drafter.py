"""Draft a chain or a tree with a smaller causal LM that has the same tokens (arXiv 2211.17192, 2305.09781).

The model's KV cache holds the committed text. Each step does three things:

1. crop the cache to the committed text;
2. read the committed tokens that are missing;
3. read the tree level by level under a tree mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.draft_model.recipe import is_student, load_student
from drafters.shared.binding import Binding
from drafters.shared.shipped import shipped_folder
from specdec.decoding.grow_confident import DynamicTree
from specdec.decoding.grow_fixed import TreeShape, already_read, level_q, level_q_among, over_all_tokens
from specdec.decoding.protocols import DraftState, Rows, Session, Size, Traits
from specdec.model.block import Block
from specdec.model.load import load
from specdec.model.runtime.storage import STORED
from specdec.model.students import Student
from specdec.model.target import TargetModel
from specdec.model.vocabularies import SAME, SharedTokens, require_vocabulary, shared_tokens
from specdec.training.saving import training_tokens
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree


class DraftModel:
    """A drafter that is itself a language model.

    If the text is longer than the model's context window, nothing is drafted and one warning is given.

    Args:
        model: one of
            - a loaded model;
            - a name for `specdec.model.load.load`;
            - a student of the target, as a module;
            - a folder that `experiments.train drafter=draft_model` wrote;
            - `auto`: the student shipped for the target.
        widths: draft a tree of this fixed shape (`TreeShape`). Takes precedence over `nodes`.
        children: how the nodes of a fixed shape are chosen (`TreeShape`). At temperature 0 q is one-hot, so the top-k
            are used.
        nodes: draft this many nodes, the most probable ones by the draft model's confidence (`DynamicTree`); children
            are the top-k. Without `widths` and `nodes` a chain of four is drafted.
        depth, beam, threshold: as in `DynamicTree`; used with `nodes`.
        storage: format of the model's fp32 weights on a CPU with fast products: `stored`, `bf16`, `int8` or `int4`.
            None means `int8` for a student and `stored` for a model loaded by name.
        vocabulary: `same` refuses a model whose tokens differ from the target's; `shared` drafts only tokens that both
            have (`shared_tokens`). Either allows logits padded to different sizes.
        load_options: options for `specdec.model.load.load`.

    Raises:
        InputError: an option out of range or a model that cannot be loaded. `start` raises it if the model does not fit
            the target.
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
            self._student = model  # built in `_bind`, because it shares tensors with the target
        else:
            self.model = load(model, storage=storage or STORED, option="drafter.model", **load_options)
        self._compare, self._tokens = vocabulary, SharedTokens()
        self._vocabulary: Tensor | None = None
        self._said: set[str] = set()  # warnings already given
        self._binding = Binding()
        self.traits = Traits()

    @property
    def max_nodes(self) -> int:
        return self.shape.nodes if self.dynamic is None else self.dynamic.nodes + 1

    @property
    def _most_read(self) -> int:
        """Largest number of drafted nodes in the cache."""
        return self.shape.nodes if self.dynamic is None else 1 + self.dynamic.beam * self.dynamic.depth

    def start(self, session: Session) -> None:
        self._binding.to(session.target, self._bind)
        self._sampling = session.sampling
        self._cache = self.model.lend_cache(self, len(session.rows), session.capacity + self._most_read)
        self.model.prefill(self._cache, self._readable(session.rows))
        # [batch nodes] the order in which the model read the nodes of the last tree, from 0; -1 if it did not read one
        self._read: Tensor | None = None

    @torch.inference_mode()
    def propose(self, state: DraftState) -> TokenTree:
        root = on_device([row[-1] for row in state.rows], self.model.device)
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
        return tree.clip(on_device([max(r - 1, 0) for r in room], root.device))

    def _bind(self, target: TargetModel) -> None:
        self._vocab = target.vocab_size
        if self._student is None:
            self._tokens = shared_tokens(target, self.model, self._compare)
            self._vocabulary = self._tokens.ids
            self.traits = Traits(size=Size.of(self.model.model, None))
            return
        student, tokens = self._student, None
        if isinstance(student, str):
            shipped = student == "auto"
            folder = shipped_folder(target, "draft_model", "drafter.model") if shipped else Path(student)
            student, tokens = load_student(folder, target), training_tokens(folder)
        self.traits = Traits(size=Size.of(student, tokens))
        self._vocabulary, self.model = student.vocabulary, student.as_target(target, "student", self._storage)

    def _window_room(self, length: int) -> int:
        """Return how many tokens may follow a text of that length, counted as in `DraftState.room`.

        The limit keeps every node whose children are drafted inside the context window.
        """
        window = self.model.context_window
        return length + self.max_nodes if window is None else max(window - length + 2, 1)

    def _readable(self, rows: Rows) -> Rows:
        """Return the rows as the model reads them.

        Tokens that the model lacks are replaced by a stand-in. A text past the context window is cut to its first two
        tokens, because every row of a batch must read at least one token after another.
        """
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
        """Return logits [batch level vocab] after the nodes of the last level; earlier levels are cached."""
        return self.model.forward(self._cache, Block.below_root(self._cache, known, level)).logits

    def _keep_accepted(self, state: DraftState) -> None:
        """Commit the accepted nodes that the model has read: not the last level, and no node of another drafter."""
        if self._read is None:
            return
        # slot i of the cache's block holds the node with order i + 1, because the root was committed before
        slots, counts = already_read(self._read - 1, state.kept.path[:, 1:])
        self._cache.keep(slots, counts)

    def _feed_missing(self, rows: Rows) -> Tensor:
        """Read the committed tokens that are not cached yet, at least the root.

        Returns logits [batch 1 vocab] after the root.
        """
        self._cache.crop([min(n, len(row) - 1) for n, row in zip(self._cache.host_lengths, rows, strict=True)])
        missing = [row[n:] for n, row in zip(self._cache.host_lengths, rows, strict=True)]
        return self.model.prefill(self._cache, missing).logits
