"""Interface of a trainable drafter: a module, a loss, a file format, and the module as a drafter.

The trainer uses nothing else. A recipe is one class, next to its drafter, and one YAML in `conf/recipe/` with the same
name as the drafter's.
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

    Args:
        tokens: token ids, 0 at padding.
        answer: True if the target wrote the token at this position. Losses count predictions *of* these tokens only;
            tokens of a prompt are not learnt.
        valid: True if the position is not padding.
        features: by name (see `Recipe.features`), fp32, zero at padding.
        progress: share of the training that is done, in [0, 1); for loss weights that change while training.
    """

    tokens: Int[Tensor, "batch seq"]
    answer: Bool[Tensor, "batch seq"]
    valid: Bool[Tensor, "batch seq"]
    features: Mapping[str, Float[Tensor, "batch seq dim"]]
    progress: float = 0.0


@dataclass(frozen=True)
class Sum:
    """A weighted mean, `total / weight`, kept as these two scalars.

    Totals and weights add up exactly over micro-batches and processes; means of means do not.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, and figures to report.

    Args:
        loss: `total`, the sum to minimise, has a gradient; `weight`, the number of summed terms, has none and may be 0.
        metrics: detached figures by name, the same names in every batch; for example "top1/head0", hits / positions.
    """

    loss: Sum
    metrics: Mapping[str, Sum]


@runtime_checkable
class Recipe(Protocol):
    """How one kind of drafter is trained.

    features    the target's features that `loss` reads at each position: "hidden", the last hidden state after the
                final norm; "layer:k", the residual stream after the first k layers ("layer:0": the embeddings)
    live        False: the target is frozen, and features come from the data folder or a forward without gradient.
                True: the module holds parts of the target that are trained with it (LoRA on the backbone). Stored
                features would be stale, so `features` must be empty, and `loss` runs the target with gradient.
    lr_scale    factors on the learning rate, by the first component of the parameter's name in the module
                ({"backbone": 0.25}); {} for the same rate everywhere
    """

    features: Sequence[str]
    live: bool
    lr_scale: Mapping[str, float]

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        """Return a new module in fp32 on the target's device, initialised with torch's global random generator.

        Parameters with `requires_grad` are trained. Parameters of the target that are not trained must not be part of
        the module.

        Args:
            target: the target.
            frequencies: number of times each token occurs in the answers of the training split (for draft
                vocabularies).
        """
        ...

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        """Return the loss of a batch.

        The trainer calls it inside the forward of the DDP or FSDP wrapper, so `module` is the one that `build`
        returned, and its attributes and submodules may be used freely. The trainer minimises the sum of `total` over
        all micro-batches and processes of a step, divided by the sum of `weight`; the gradient therefore does not
        depend on how the global batch was split.
        """
        ...

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        """Write the drafter's own format into `folder`, which exists and is empty."""
        ...

    def drafter(self, module: nn.Module, target: TargetModel) -> Drafter:
        """Return a drafter that shares the module's weights; the trainer measures its tokens per step."""
        ...
