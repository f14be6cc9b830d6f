"""Train an EAGLE head on a frozen target, with its own drafts as input (arXiv 2503.01840, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from drafters.eagle.drafter import Eagle
from drafters.eagle.head import EagleHead, fresh_head, save_head
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import frequent_tokens
from specdec.training.loss.imitation import next_token_loss, require_kind
from specdec.training.recipe import Loss, Sum, TrainBatch


class EagleRecipe:
    """Train an EAGLE head.

    Args:
        layers: target layers to initialise from (-1 = last).
        vocabulary: number of most frequent tokens to guess among; None guesses all tokens.
        loss: kind of loss, as in `next_token_loss`.
        steps: number of draft levels that training simulates.
        decay: the loss of level k weighs decay^(k - 1), in (0, 1].
        depth: length of the chain with which tokens per step are measured while training.

    Raises:
        InputError: an option out of range.
    """

    live = False
    features: Sequence[str] = ("hidden",)
    lr_scale: Mapping[str, float] = {}

    def __init__(
        self,
        layers: Sequence[int] = (-1,),
        vocabulary: int | None = None,
        loss: str = "forward_kl",
        steps: int = 3,
        decay: float = 0.8,
        depth: int = 4,
    ) -> None:
        require_kind(loss)
        if steps < 1:
            raise InputError(
                "recipe.steps", expected="an integer >= 1", got=repr(steps), fix="1 practises the first level only"
            )
        if not 0 < decay <= 1:
            raise InputError("recipe.decay", expected="a number in (0, 1]", got=repr(decay), fix="try 0.8")
        self.layers, self.vocabulary, self.kind = layers, vocabulary, loss
        self.steps, self.decay, self.depth = steps, decay, depth

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        vocabulary = None
        if self.vocabulary is not None:
            vocabulary = frequent_tokens(frequencies, self.vocabulary).to(target.device)
        return fresh_head(target, self.layers, vocabulary)

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        """Return the loss summed over levels.

        Level k at position t guesses token t + 2; its root is token t + 2 - k. Both must belong to the answer, as they
        do when the head is used. The weight is the number of guesses of the first level.
        """
        assert isinstance(module, EagleHead)
        hidden, after = batch.features["hidden"], batch.tokens[:, 1:]
        text = TrainBatch(after, batch.answer[:, 1:], batch.valid[:, 1:], {}, batch.progress)
        total, weight = hidden.new_zeros(()), None
        metrics: dict[str, Sum] = {}
        for number, states in enumerate(module(hidden[:, :-1], after, self.steps)):
            rooted = torch.zeros_like(text.answer)
            rooted[:, number + 1 :] = text.answer[:, : text.answer.shape[1] - number - 1]
            levels = replace(text, answer=text.answer & rooted)
            level = next_token_loss(states.float(), hidden[:, 1:], levels, target, self.kind, module.vocabulary)
            total = total + self.decay**number * level.loss.total
            weight = level.loss.weight if weight is None else weight
            metrics |= {f"{name}/level{number + 1}": value for name, value in level.metrics.items()}
        assert weight is not None
        return Loss(Sum(total, weight), metrics)

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        assert isinstance(module, EagleHead)
        save_head(module, target, folder)

    def drafter(self, module: nn.Module, target: TargetModel) -> Eagle:
        assert isinstance(module, EagleHead)
        return Eagle(module, self.depth, beam=1, nodes=self.depth)
