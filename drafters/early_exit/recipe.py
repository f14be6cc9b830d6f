"""Train an exit adapter on a frozen target (arXiv 2404.18911, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from drafters.early_exit.adapter import ExitAdapter, fresh_adapter, save_adapter
from drafters.early_exit.drafter import EarlyExit
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import frequent_tokens
from specdec.training.loss.imitation import next_token_loss, require_kind
from specdec.training.recipe import Loss, TrainBatch


class EarlyExitRecipe:
    """Train an exit adapter.

    Args:
        exit_layer: number of the target's layers that draft.
        blocks: number of residual blocks; 0 uses copies of layers.
        layers: target layers to initialise from (-1 = last).
        vocabulary: number of most frequent tokens to guess among; None guesses all tokens.
        loss: kind of loss, as in `next_token_loss`.
        stored: whether the data folder has the feature `layer:EXIT_LAYER`. If not, the target's first layers compute it
            in every step, which costs time instead of disk space.
        depth, threshold: of the chain with which tokens per step are measured while training, as in `EarlyExit`.

    Raises:
        InputError: an option out of range.
    """

    live = False
    lr_scale: Mapping[str, float] = {}

    def __init__(
        self,
        exit_layer: int,
        blocks: int = 0,
        layers: Sequence[int] = (-1,),
        vocabulary: int | None = None,
        loss: str = "forward_kl",
        stored: bool = True,
        depth: int = 4,
        threshold: float = 0.0,
    ) -> None:
        if blocks < 0:
            raise InputError("recipe.blocks", expected="an integer >= 0", got=repr(blocks), fix="use 0 for layers")
        require_kind(loss)
        self.exit_layer, self.blocks, self.layers, self.vocabulary = exit_layer, blocks, layers, vocabulary
        self.kind, self.depth, self.threshold = loss, depth, threshold
        self._feature = f"layer:{exit_layer}"
        self.features: Sequence[str] = [self._feature, "hidden"] if stored else ["hidden"]

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        vocabulary = None
        if self.vocabulary is not None:
            vocabulary = frequent_tokens(frequencies, self.vocabulary).to(target.device)
        return fresh_adapter(target, self.exit_layer, self.blocks, self.layers, vocabulary)

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        """Return the loss. The residual stream of token t guesses token t + 1, if that belongs to an answer."""
        assert isinstance(module, ExitAdapter)
        residual = batch.features.get(self._feature)
        if residual is None:
            with target.stock() as model, torch.no_grad():
                lower = target.parts.lower(model, self.exit_layer)
                residual = lower(input_ids=batch.tokens, use_cache=False).last_hidden_state
        states = module(residual.to(module.dtype))
        return next_token_loss(states, batch.features["hidden"], batch, target, self.kind, module.vocabulary)

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        assert isinstance(module, ExitAdapter)
        save_adapter(module, target, folder)

    def drafter(self, module: nn.Module, target: TargetModel) -> EarlyExit:
        assert isinstance(module, ExitAdapter)
        module = module.in_precision_of(target)
        return EarlyExit(self.exit_layer, module, self.depth, nodes=self.depth, threshold=self.threshold)
