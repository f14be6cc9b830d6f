"""The slow oracle: the stock model scores every node on its own path, without a cache.

It shares no attention kernel, mask or cache with `tree_attention`. So if the two agree, both are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.protocols import Rows, Scores
from specdec.decoding.sampling import SamplingParams
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree, histories


class PathByPath:
    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self._sampling = SamplingParams()
        self._exit_layer: int | None = None

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int, exit_layer: int | None = None) -> Scores:
        self._sampling, self._exit_layer = sampling, exit_layer
        logits, hidden, residual = zip(*(self._stock(row) for row in rows), strict=True)
        last = torch.stack([row[-1] for row in logits])
        scores = sampling.scores(last, rows)[:, None]
        return Scores(scores, _padded(hidden), sampling, self._of_exit(_padded(residual)))

    def begin(self, tree: TokenTree, rows: Rows, new: int) -> Float[Tensor, "batch new dim"]:
        paths = histories(tree, rows)
        wanted = [
            paths[r * tree.nodes + node] for r in range(tree.batch) for node in range(tree.nodes - new, tree.nodes)
        ]
        return torch.stack([self._stock(path)[2][-1] for path in wanted]).view(tree.batch, new, -1)

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        before = histories(tree, rows)
        at_end = [[states[-1] for states in self._stock(path)] for path in before]
        logits, hidden, residual = (torch.stack(states) for states in zip(*at_end, strict=True))
        shape = (tree.batch, tree.nodes, -1)
        scores = self._sampling.tree_scores(logits.view(shape), tree, rows)
        return Scores(scores, hidden.view(shape), self._sampling, self._of_exit(residual.view(shape)))

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Do nothing: there is no cache, and every call reads the whole text again."""

    def _of_exit(self, residual: Tensor) -> Tensor | None:
        return None if self._exit_layer is None else residual

    @torch.inference_mode()
    def _stock(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits [seq vocab] of one text, its last hidden states and those after the exit layer [seq dim].

        Without an exit layer the last are the embeddings.
        """
        with self.target.stock() as model:
            out = model(
                input_ids=torch.tensor([list(tokens)], device=self.target.device),
                use_cache=False,
                output_hidden_states=True,
            )
        return out.logits[0], out.hidden_states[-1][0], out.hidden_states[self._exit_layer or 0][0]


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
