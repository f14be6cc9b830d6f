"""A short script with everything that the loop does with a model, and the stock model's results for it.

Two rows of unequal length are read as in a generation:

    row 0   t t t t | t t t | d | r-a        two chunks of the prompt, a decode step, a branching tree,
    row 1   t t     | t     | d |  `b-c      of which the path r b c is kept, and one more step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from specdec.model.block import Block
from specdec.model.layers import last_hidden_states
from specdec.trees.tree import TokenTree, histories

if TYPE_CHECKING:
    from specdec.model.target import TargetModel

CHUNKS = ([4, 2], [3, 1])  # tokens of both rows in each chunk of the prompt
PARENTS, KEPT = [-1, 0, 0, 2], [0, 2, 3]  # the tree, and the path of it that is kept
Text = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """The model's state after one token.

    Args:
        stage: what was done, in words.
        text: the tokens of the row up to this one, including those on its path in the tree.
        logits: Float [vocab].
        hidden: Float [dim], the decoder's last hidden state.
    """

    stage: str
    text: Text
    logits: Float[Tensor, " vocab"]
    hidden: Float[Tensor, " dim"]


class Script:
    """Texts of random tokens, read in pieces by our forward and as a whole by the stock model.

    Args:
        model: gives the vocabulary; tokens with a special role (padding, EOS) are left out.
        repeat: how often the first chunk is read; larger for longer texts.
        first_position: position of the first token.
        rows: 2, or 1 for the first row alone.
    """

    def __init__(self, model: PreTrainedModel, repeat: int = 1, first_position: int = 0, rows: int = 2) -> None:
        self.chunks = [sizes[:rows] for sizes in (*[CHUNKS[0]] * repeat, CHUNKS[1])]
        self.first_position, self.rows = first_position, rows
        self._tokens = _plain_tokens(model)

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return sum(sizes[0] for sizes in self.chunks) + len(PARENTS) + 2

    def ours(self, target: TargetModel) -> list[Reading]:
        """Return the state after every token, computed by `target`."""
        reader = _Reader(target, self)
        for number, sizes in enumerate(self.chunks, start=1):
            reader.chain(f"chunk {number} of a prompt", sizes)
        reader.chain("a decode step", [1] * self.rows)
        reader.tree("a branching tree")
        reader.chain("a step after a kept path", [1] * self.rows)
        return reader.readings

    @torch.inference_mode()
    def theirs(self, model: PreTrainedModel, texts: Sequence[Text]) -> dict[Text, tuple[Tensor, Tensor]]:
        """Return (logits, hidden) after each of `texts`, by the stock model.

        Each forward reads one text by itself. Beginnings of longer texts use the longer text's forward.
        """
        answers: dict[Text, tuple[Tensor, Tensor]] = {}
        with last_hidden_states(model) as hidden:
            for text in sorted(set(texts), key=len, reverse=True):
                if text in answers:
                    continue
                ids, told = torch.tensor([text], device=model.device), {}
                if self.first_position:
                    told["position_ids"] = self.first_position + torch.arange(len(text), device=model.device)[None]
                logits = model(input_ids=ids, use_cache=False, **told).logits[0]
                for end in range(1, len(text) + 1):
                    answers.setdefault(text[:end], (logits[end - 1], hidden[-1][1][0, end - 1]))
        return answers

    def token(self, row: int, index: int) -> int:
        """Return a plain token for this position of a row."""
        return self._tokens[(17 * index + 71 * row + 5) % len(self._tokens)]


class _Reader:
    """Reads a script with a target, and records the state after every token."""

    def __init__(self, target: TargetModel, script: Script) -> None:
        self._target, self._script = target, script
        self._cache = target.new_cache(script.rows, script.length)
        self._rows: list[list[int]] = [[] for _ in range(script.rows)]
        self._drawn = 0
        self.readings: list[Reading] = []

    def chain(self, stage: str, sizes: Sequence[int]) -> None:
        """Read and commit `sizes[r]` more tokens of each row."""
        new = [self._draw(r, size) for r, size in enumerate(sizes)]
        tree = TokenTree.from_rows(new, [range(-1, len(row) - 1) for row in new], self._target.device)
        order = torch.arange(tree.nodes, device=self._target.device)
        self._forward(stage, tree, order.expand_as(tree.tokens), None)
        self._commit(tree, [list(range(size)) for size in sizes])

    def tree(self, stage: str) -> None:
        """Read a branching tree, and commit one path of it."""
        new = [self._draw(r, len(PARENTS)) for r in range(len(self._rows))]
        tree = TokenTree.from_rows(new, [PARENTS] * len(new), self._target.device)
        self._forward(stage, tree, tree.depth, tree.ancestor_mask)
        self._commit(tree, [KEPT] * len(new))

    def _draw(self, row: int, count: int) -> list[int]:
        self._drawn += count
        return [self._script.token(row, self._drawn + i) for i in range(count)]

    def _forward(self, stage: str, tree: TokenTree, depth: Tensor, mask: Tensor | None) -> None:
        positions = self._script.first_position + self._cache.lengths[:, None] + depth
        last_first = torch.arange(tree.nodes - 1, -1, -1, device=self._target.device).expand_as(tree.tokens)
        out = self._target.forward(self._cache, Block(tree.tokens, positions, mask, last_first))
        logits, hidden = out.logits.flip(1).flatten(0, 1), out.hidden.flatten(0, 1).clone()
        texts = histories(
            tree, [[*row, token] for row, token in zip(self._rows, tree.tokens[:, 0].tolist(), strict=True)]
        )
        real = tree.valid.flatten().tolist()
        self.readings += [Reading(stage, tuple(text), logits[i], hidden[i]) for i, text in enumerate(texts) if real[i]]

    def _commit(self, tree: TokenTree, paths: list[list[int]]) -> None:
        width = max(map(len, paths))
        padded = torch.tensor([[*path, *[-1] * (width - len(path))] for path in paths], device=self._target.device)
        self._cache.keep(padded, [len(path) for path in paths])
        for row, tokens, path in zip(self._rows, tree.tokens.tolist(), paths, strict=True):
            row += [tokens[node] for node in path]


def _plain_tokens(model: PreTrainedModel) -> list[int]:
    config, embeddings = model.config.get_text_config(), model.get_input_embeddings()
    known = min(config.vocab_size, len(embeddings.weight))  # type: ignore[arg-type]
    special: set[int] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = getattr(config, name, None)
        special |= {ids} if isinstance(ids, int) else set(ids or [])
    step = max(1, known // 1009)  # spread over the vocabulary
    return [token for token in range(0, known, step) if token not in special] or [0]
