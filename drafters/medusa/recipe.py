"""Training heads on a frozen target: Medusa-1 (arXiv 2401.10774, section 2.2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from drafters.medusa.drafter import Medusa, load_heads
from drafters.medusa.formats import write_official
from drafters.medusa.heads import MedusaHeads, fresh_heads
from drafters.medusa.loss import medusa_loss
from specdec.decoding.protocols import Drafter
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import frequent_tokens
from specdec.training.recipe import Loss, TrainBatch


class MedusaRecipe:
    """heads, layers: how many, and of how many residual blocks; own_output: output layers of their own instead of the
    target's; vocabulary: guess only that many of the most frequent tokens, null for all; decay, soft: see
    `medusa_loss`; tree: for measuring tokens per step; start: heads to go on from instead of fresh ones (whose number,
    layers and output then count, and their vocabulary, unless they share the target's output layer and another one is
    asked for).
    """

    features: Sequence[str] = ("hidden",)
    live = False
    lr_scale: Mapping[str, float] = {}

    def __init__(
        self,
        heads: int = 4,
        layers: int = 1,
        own_output: bool = False,
        vocabulary: int | None = None,
        decay: float = 0.8,
        soft: float = 0.0,
        tree: int | str | Sequence[Sequence[int]] = 15,
        start: str | None = None,
    ) -> None:
        for name, value in (("heads", heads), ("layers", layers)):
            if value < 1:
                raise InputError(f"recipe.{name}", expected="an integer >= 1", got=value, fix="raise it")
        for name, share in (("decay", decay), ("soft", soft)):
            if not 0 <= share <= 1:
                raise InputError(f"recipe.{name}", expected="a number in [0, 1]", got=share, fix="choose another")
        self.heads, self.layers, self.own_output, self.vocabulary = heads, layers, own_output, vocabulary
        self.decay, self.soft, self.tree, self.start = decay, soft, tree, start

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        vocabulary = None
        if self.vocabulary is not None:
            vocabulary = frequent_tokens(frequencies, self.vocabulary).to(target.device)
        if self.start is not None:
            heads = self._read(self.start, target).float()
            if heads.output is None and vocabulary is not None:
                heads.vocabulary = vocabulary
            return heads
        return fresh_heads(target, self.heads, self.layers, self.own_output, vocabulary)

    def _read(self, start: str, target: TargetModel) -> MedusaHeads:
        return load_heads(start, target, self.heads)[0]

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        assert isinstance(module, MedusaHeads)
        return medusa_loss(module, target, batch, batch.features["hidden"], self.decay, self.soft)

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        assert isinstance(module, MedusaHeads)
        write_official(module, folder, target.name, torch.float16)

    def drafter(self, module: nn.Module, target: TargetModel) -> Drafter:
        assert isinstance(module, MedusaHeads)
        return Medusa(module, self.tree)
