"""Train heads and backbone together: Medusa-2 (arXiv 2401.10774, sections 2.2.2 and 2.3.2).

The target changes: decoding afterwards yields the text of the new backbone, not of the old one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from drafters.medusa.formats import write_official
from drafters.medusa.heads import MedusaHeads, output_layer
from drafters.medusa.loss import medusa_loss
from drafters.medusa.recipe import MedusaRecipe
from specdec.decoding.protocols import Drafter
from specdec.errors import InputError
from specdec.extras import require_extra
from specdec.model.target import TargetModel
from specdec.training.loss.vocabulary_loss import cross_entropy, divergence
from specdec.training.recipe import Loss, Sum, TrainBatch

ADAPTER = "medusa"


class JointModule(nn.Module):
    """The heads, and the parameters of the target that are trained with them. No other parameters of the target.

    Args:
        heads: the heads.
        backbone: the target's model; its parameters with `requires_grad` are trained.
    """

    def __init__(self, heads: MedusaHeads, backbone: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        self.backbone = nn.ParameterDict({name.replace(".", "/"): p for name, p in trained.items()})


class JointMedusaRecipe:
    """Train with L = L_LM + lambda_0 x (the heads' loss), both on text of the target.

    Args:
        heads: how the heads are made, and their loss.
        backbone: `lora` trains low-rank adapters on every linear layer except the output layer; L_LM is the divergence
            from the distribution without adapters, so that the backbone stays close to what it was. `full` trains every
            parameter; L_LM is the cross-entropy of the next token.
        rank, alpha: of the adapters.
        lambda_0: weight of the heads' loss.
        schedule: `constant`, or `sine`, which rises from 0 to lambda_0 at the end of training.
        warm_up: share of the training in which only the heads learn, in [0, 1).
        backbone_lr: learning rate of the backbone, as a multiple of that of the heads.

    Raises:
        InputError: an unknown option, or `warm_up` out of range.
    """

    features: Sequence[str] = ()
    live = True

    def __init__(
        self,
        heads: MedusaRecipe,
        backbone: str = "lora",
        rank: int = 32,
        alpha: int = 16,
        lambda_0: float = 0.01,
        schedule: str = "sine",
        warm_up: float = 0.0,
        backbone_lr: float = 0.25,
    ) -> None:
        for name, value, known in (
            ("backbone", backbone, ("lora", "full")),
            ("schedule", schedule, ("constant", "sine")),
        ):
            if value not in known:
                raise InputError(f"recipe.{name}", expected=" or ".join(known), got=repr(value), fix="choose one")
        if not 0 <= warm_up < 1:
            raise InputError("recipe.warm_up", expected="a share in [0, 1)", got=repr(warm_up), fix="try 0.2")
        self.heads, self.backbone, self.rank, self.alpha = heads, backbone, rank, alpha
        self.lambda_0, self.schedule, self.warm_up = lambda_0, schedule, warm_up
        self.lr_scale: Mapping[str, float] = {"backbone": backbone_lr}

    def build(self, target: TargetModel, frequencies: Int[Tensor, " vocab"]) -> nn.Module:
        """Make the heads, and put the adapters into the target's model in place.

        Raises:
            InputError: the target uses the fast runtime, which does not support adapters.
        """
        if target.runtime is not None:
            expected, fix = "the stock runtime while the backbone is trained", "use target.runtime=stock"
            raise InputError("target.runtime", expected=expected, got="fast", fix=fix)
        heads = self.heads.build(target, frequencies)
        assert isinstance(heads, MedusaHeads)
        if self.backbone == "full":
            target.model.requires_grad_(True)
        else:
            require_extra("peft", "recipe.backbone=lora")
            from peft import LoraConfig

            lora = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
            target.model.add_adapter(lora, ADAPTER)
        return JointModule(heads, target.model)

    def loss(self, module: nn.Module, target: TargetModel, batch: TrainBatch) -> Loss:
        assert isinstance(module, JointModule)
        with target.stock() as model:
            before = self._before(
                model, batch
            )  # first: toggling adapters must not separate a forward from its backward
            hidden = model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        if batch.progress < self.warm_up:
            hidden = (
                hidden.detach() + 0.0 * hidden
            )  # gradients of exactly 0, because Adam would amplify rounding errors
        language, count = self._language(target, batch, hidden, before)
        heads = medusa_loss(module.heads, target, batch, hidden, self.heads.decay, self.heads.soft)
        rising = math.sin(batch.progress * math.pi / 2) if self.schedule == "sine" else 1.0
        total = language + self.lambda_0 * rising * heads.loss.total
        return Loss(Sum(total, count), {**heads.metrics, "backbone": Sum(language.detach(), count)})

    def save(self, module: nn.Module, target: TargetModel, folder: Path) -> None:
        """Write the heads, and in `backbone/` their backbone: adapters as peft saves them, or a whole model."""
        assert isinstance(module, JointModule)
        write_official(module.heads, folder, "backbone", torch.float16)
        target.model.save_pretrained(folder / "backbone")
        if target.tokenizer is not None:
            target.tokenizer.save_pretrained(folder / "backbone")

    def drafter(self, module: nn.Module, target: TargetModel) -> Drafter:
        assert isinstance(module, JointModule)
        return self.heads.drafter(module.heads, target)

    def _before(self, model: Any, batch: TrainBatch) -> Float[Tensor, "batch seq dim"] | None:
        """Return the last hidden states without adapters, the reference of L_LM; None if `backbone` is `full`."""
        if self.backbone == "full":
            return None
        with torch.no_grad(), without_adapters(model):
            states: Tensor = model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        return states

    @staticmethod
    def _language(
        target: TargetModel,
        batch: TrainBatch,
        hidden: Float[Tensor, "batch seq dim"],
        before: Float[Tensor, "batch seq dim"] | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return L_LM summed over the positions before an answer's token, and the number of these positions.

        Args:
            target: the model that is trained.
            batch: the texts.
            hidden: its last hidden states.
            before: the last hidden states without adapters, None if `backbone` is `full`.
        """
        weight: Any = output_layer(target).weight
        follows = batch.answer[:, 1:]
        states = hidden[:, :-1][follows]
        if before is None:
            loss = cross_entropy(states, weight, batch.tokens[:, 1:][follows])[0]
        else:
            loss = divergence(states, weight.detach(), before[:, :-1][follows], weight.detach())[0]
        return loss, follows.sum().float()


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Turn the adapters off inside the block, so that the model is as it was before training."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
