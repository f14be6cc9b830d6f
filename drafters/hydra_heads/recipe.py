"""Train Hydra heads on a frozen target with Medusa's loss; each head reads the tokens that came (arXiv 2402.05109)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from drafters.hydra_heads.drafter import Hydra
from drafters.hydra_heads.heads import HydraHeads, fresh_prefix, load_heads, save_heads
from drafters.medusa.heads import MedusaHeads
from drafters.medusa.recipe import MedusaRecipe
from drafters.shared.trained import CONFIG
from specdec.model.target import TargetModel


class HydraRecipe(MedusaRecipe):
    """Train Hydra heads.

    Args:
        prefix: target layers to initialise the prefix from (-1 = last), if the heads have none yet; None adds none.
        beam, nodes: of the tree with which tokens per step are measured while training.
        medusa: options as in `MedusaRecipe`. `start` names Medusa heads to initialise from (`auto`: those shipped for
            the target), or Hydra heads to continue.
    """

    def __init__(self, prefix: Sequence[int] | None = None, beam: int = 6, nodes: int = 15, **medusa: Any) -> None:
        super().__init__(**medusa)
        self.prefix, self.beam, self.nodes = prefix, beam, nodes

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        heads = super().build(target, frequencies)
        assert isinstance(heads, MedusaHeads)
        if isinstance(heads, HydraHeads) and (heads.prefix is not None or self.prefix is None):
            return heads
        return HydraHeads.of(heads, None if self.prefix is None else fresh_prefix(target, self.prefix))

    def _read(self, start: str, target: TargetModel) -> MedusaHeads:
        if (Path(start) / CONFIG).is_file():
            return load_heads(Path(start), target, "recipe.start")
        return super()._read(start, target)

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        assert isinstance(module, HydraHeads)
        save_heads(module, target, folder)

    def drafter(self, module: nn.Module, target: TargetModel) -> Hydra:
        assert isinstance(module, HydraHeads)
        return Hydra(module, module.heads, self.beam, self.nodes, threshold=0.0)
