"""What a trainable drafter brings: a module, a loss, its file format, and the module as a drafter.

The trainer knows nothing else of it. One recipe is one class (beside its drafter) and one YAML in `conf/recipe/`,
named as the drafter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from specdec.decoding.protocols import Drafter
from specdec.model.target import TargetModel


@dataclass(frozen=True)
class TrainBatch:
    """Sequences of the target's own text, padded on the right.

    tokens: ids, 0 where padded. answer: the token at this position was written by the target; losses count
    predictions *of* these tokens only (a prompt's tokens are nobody's to learn). valid: not padding.
    features: by name, fp32, at every valid position (zero at padding); what they are, see `Recipe.features`.
    progress: the share of the training done, in [0, 1): for weights that change while training.
    """

    tokens: Int[Tensor, "batch seq"]
    answer: Bool[Tensor, "batch seq"]
    valid: Bool[Tensor, "batch seq"]
    features: Mapping[str, Float[Tensor, "batch seq dim"]]
    progress: float = 0.0


@dataclass(frozen=True)
class Sum:
    """A weighted mean kept as its two parts, both scalars: `total / weight`.

    Parts add up exactly over micro-batches and processes, which means of means do not.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]


@dataclass(frozen=True)
class Loss:
    """loss: what is minimised, as sums over this batch: `total` carries the gradient, `weight` does not and counts
    what was summed (0 is allowed: a batch without any). metrics: figures to report, detached, under the same names
    in every batch ("top1/head0": hits over positions)."""

    loss: Sum
    metrics: Mapping[str, Sum]


@runtime_checkable
class Recipe(Protocol):
    """How one kind of drafter is trained.

    features    what `loss` reads, at each position: "hidden", the target's last hidden state after its final norm;
                "layer:k", the residual stream after its first k layers ("layer:0": the embeddings)
    live        False: the target is frozen; features come from the data folder or a forward without gradient. True:
                the module holds parts of the target that are trained with it (LoRA on the backbone), so that stored
                features would be stale; `features` must be empty and `loss` runs the target itself, with gradient.
    lr_scale    factors on the learning rate by first part of the parameter's name in the module
                ({"backbone": 0.25}); {} for one rate everywhere
    """

    features: Sequence[str]
    live: bool
    lr_scale: Mapping[str, float]

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        """A fresh module in fp32 on the target's device, seeded by torch's global generator. Parameters with
        `requires_grad` are trained; what the module shares with the target but does not train stays out of it.
        frequencies: how often each token stands in the answers of the training split (for draft vocabularies)."""
        ...

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        """The batch's loss. Called inside the forward of whatever DDP or FSDP made of the module, so that `module` is
        the plain one here: its attributes and submodules may be used freely. The trainer minimises the sum of `total`
        over all micro-batches and processes of a step, divided by the sum of `weight`: so the gradient does not
        depend on how the global batch was dealt out."""
        ...

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        """Write the drafter's own format into `folder`, which exists and is empty."""
        ...

    def drafter(self, module: nn.Module, target: TargetModel) -> Drafter:
        """The module as a drafter, sharing its weights: measures tokens per step while training."""
        ...
