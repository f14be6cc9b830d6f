"""Training Hydra heads on a frozen target: Medusa's loss, each head after the tokens that came (arXiv 2402.05109)."""

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
    """prefix: copies of which of the target's layers the heads' prefix begins as (-1: the last), where they have none
    yet; null for heads without. beam, nodes: of the tree by which tokens per step are measured while training. start:
    Medusa heads to begin as (`auto`: those shipped for the target), or Hydra heads to go on from. Everything else: see
    `MedusaRecipe`.
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
