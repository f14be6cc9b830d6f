"""Train heads on a frozen target: Medusa-1 (arXiv 2401.10774, section 2.2.1)."""

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
    """Train heads.

    Args:
        heads: number of heads.
        layers: residual blocks per head.
        own_output: give the heads their own output layers instead of the target's.
        vocabulary: number of most frequent tokens to guess among; None guesses all tokens.
        decay, soft: as in `medusa_loss`.
        tree: as in `Medusa`; used to measure tokens per step while training.
        start: heads to continue from, instead of fresh ones. Their number of heads, layers and output layers then
            replace the options above. Their vocabulary does too, unless they share the target's output layer and
            `vocabulary` is set.

    Raises:
        InputError: an option out of range.
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
                raise InputError(f"recipe.{name}", expected="an integer >= 1", got=repr(value), fix="raise it")
        for name, share in (("decay", decay), ("soft", soft)):
            if not 0 <= share <= 1:
                raise InputError(f"recipe.{name}", expected="a number in [0, 1]", got=repr(share), fix="choose another")
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
