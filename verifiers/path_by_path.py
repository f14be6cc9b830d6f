"""The slow oracle: every node scored by the stock model on its own path, without any cache.

Shares no attention kernel, mask or cache with `tree_attention`: where the two agree, both are right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from specdec.protocols import Rows, Scores
from specdec.sampling import SamplingParams
from specdec.target import TargetModel
from specdec.tree import TokenTree, histories


class PathByPath:
    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self._sampling = SamplingParams()

    def prefill(self, rows: Rows, sampling: SamplingParams, capacity: int) -> Scores:
        self._sampling = sampling
        outputs = [self._stock(row) for row in rows]
        logits = torch.stack([logits[-1] for logits, _ in outputs])
        hidden = torch.nn.utils.rnn.pad_sequence([hidden for _, hidden in outputs], batch_first=True)
        return Scores(sampling.scores(logits, rows)[:, None], hidden, sampling)

    def verify(self, tree: TokenTree, rows: Rows) -> Scores:
        before = histories(tree, rows)
        outputs = [self._stock(path) for path in before]
        logits = torch.stack([logits[-1] for logits, _ in outputs])
        hidden = torch.stack([hidden[-1] for _, hidden in outputs])
        shape = (tree.batch, tree.nodes, -1)
        return Scores(self._sampling.scores(logits, before).view(shape), hidden.view(shape), self._sampling)

    def commit(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Nothing to do: no cache, every call reads the whole text again."""

    @torch.inference_mode()
    def _stock(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits [seq vocab] and last hidden states [seq dim] of one text."""
        with self.target.stock() as model:
            out = model(
                input_ids=torch.tensor([list(tokens)], device=self.target.device),
                use_cache=False,
                output_hidden_states=True,
            )
        return out.logits[0], out.hidden_states[-1][0]
