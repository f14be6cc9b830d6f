"""The smallest trainable drafter: one linear layer turns a token's hidden state into that of the next, which the
target's own output layer reads. It drafts one token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor, nn

from specdec.decoding.protocols import DraftState, Session
from specdec.model.target import TargetModel
from specdec.training.loss.vocabulary_loss import cross_entropy
from specdec.training.recipe import Loss, Sum, TrainBatch
from specdec.trees.tree import TokenTree


class LinearRecipe:
    """dropout: so that training draws random numbers, which a resumed run must draw again."""

    live = False

    def __init__(self, dropout: float = 0.1, lr_scale: dict[str, float] | None = None) -> None:
        self.features, self.lr_scale = ["hidden"], lr_scale or {}
        self._dropout = dropout

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        assert int(frequencies.sum()) > 0
        dim = target.model.config.hidden_size
        return nn.Sequential(nn.Dropout(self._dropout), nn.Linear(dim, dim))

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        """The hidden state at t predicts the token at t + 2."""
        here = batch.answer[:, 2:]
        hidden = module(batch.features["hidden"][:, :-2][here])
        labels = batch.tokens[:, 2:][here]
        total, hits = cross_entropy(hidden, target.model.get_output_embeddings().weight, labels)
        weight = here.sum().float()
        return Loss(Sum(total, weight), {"top1": Sum(hits[0], weight), "top5": Sum(hits[1], weight)})

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        save_file(module.state_dict(), folder / "head.safetensors")

    def drafter(self, module: nn.Module, target: TargetModel) -> LinearDrafter:
        return LinearDrafter(module)


class LinearDrafter:
    def __init__(self, head: nn.Module) -> None:
        self.head = head

    @property
    def max_nodes(self) -> int:
        return 2

    def start(self, session: Session) -> None:
        self._output = session.target.model.get_output_embeddings()

    def propose(self, state: DraftState) -> TokenTree:
        last = (state.kept.path >= 0).sum(-1) - 1  # the root's hidden state is not known yet: its parent's is
        hidden = state.kept.hidden[torch.arange(len(last)), last]
        drafted = self._output(self.head(hidden)).argmax(-1)
        root = torch.tensor([row[-1] for row in state.rows])
        return TokenTree(torch.stack([root, drafted], 1), torch.tensor([[-1, 0]]).expand(len(root), -1))


def conversations(count: int, turns: Sequence[str] = ("tell me", "and then")) -> list[dict[str, object]]:
    """Prompts as lines of a JSONL file."""
    return [
        {"question_id": f"q{i}", "category": "test", "turns": [f"{word} {i}" for word in turns[: 1 + i % len(turns)]]}
        for i in range(count)
    ]
