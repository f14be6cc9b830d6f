"""The heads as a module: what is trained, stored and drafted with. Knows no files and no trees."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from specdec.errors import InputError
from specdec.model.target import TargetModel


class MedusaHeads(nn.Module):
    """K heads on the target's last hidden state h_t: head i, counted from 0, guesses token t + 2 + i (the target's
    own output layer has token t + 1). arXiv 2401.10774, section 2.1.1.

    A head is L residual blocks x + SiLU(W x + b) and an output layer: its own, or the target's, shared by all.
    Fresh blocks are zero, so that a head begins as the target's own guess of token t + 1.

    weight  [layers heads dim dim], bias [layers heads dim]: one tensor for all heads, so that they are computed in
            one product; every head and layer has numbers of its own.
    output  [heads rows dim] or None: own output layers; None shares the target's.
    vocabulary [rows] or None: the target's ids of the output rows, ascending, where a head knows only some tokens.
    """

    vocabulary: Tensor | None  # a buffer: moves with the module, is never trained

    def __init__(
        self,
        heads: int,
        layers: int,
        dim: int,
        output: Float[Tensor, "heads rows dim"] | None = None,
        vocabulary: Int[Tensor, " rows"] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers, heads, dim, dim))
        self.bias = nn.Parameter(torch.zeros(layers, heads, dim))
        self.output = None if output is None else nn.Parameter(output)
        self.register_buffer("vocabulary", vocabulary)

    @property
    def layers(self) -> int:
        return self.weight.shape[0]

    @property
    def heads(self) -> int:
        return self.weight.shape[1]

    @property
    def dim(self) -> int:
        return self.weight.shape[2]

    def forward(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "heads *batch dim"]:
        """What the output layer reads, for every head."""
        flat = hidden.reshape(1, -1, self.dim).to(self.weight.dtype)
        return self.blocks(flat.expand(self.heads, -1, -1)).reshape(self.heads, *hidden.shape)

    def entering(
        self, hidden: Float[Tensor, "batch seq dim"], tokens: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        """What `guesses` takes, of whole texts: the target's hidden states as they are."""
        return hidden

    def guesses(
        self, hidden: Float[Tensor, "rows dim"], path: Int[Tensor, "rows heads"], target: TargetModel
    ) -> Float[Tensor, "heads rows dim"]:
        """As `forward`, where `path` is the tokens t + 1, t + 2, ... that came: these heads do not look at them."""
        return self(hidden)

    def blocks(self, x: Float[Tensor, "heads rows dim"]) -> Float[Tensor, "heads rows dim"]:
        for weight, bias in zip(self.weight, self.bias, strict=True):
            x = x + F.silu(torch.baddbmm(bias[:, None], x, weight.mT))
        return x

    def rows(self, target: TargetModel) -> int:
        """How many tokens the heads know."""
        if self.vocabulary is not None:
            return len(self.vocabulary)
        return output_weight(target).shape[0] if self.output is None else self.output.shape[1]

    def output_rows(self, target: TargetModel) -> list[Float[Tensor, "rows dim"]]:
        """Each head's output layer; the same tensor for all heads where they share the target's."""
        if self.output is not None:
            return list(self.output)
        shared = output_weight(target)
        return [shared if self.vocabulary is None else shared[self.vocabulary]] * self.heads

    def output_bias(self, target: TargetModel) -> Float[Tensor, " rows"] | None:
        """Of the target's output layer, where heads share it and it has one."""
        bias = getattr(output_layer(target), "bias", None)
        if bias is None or self.output is not None:
            return None
        shared: Tensor = bias.detach()
        return shared if self.vocabulary is None else shared[self.vocabulary]

    def ids(self, rows: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The target's token ids of output rows."""
        return rows if self.vocabulary is None else self.vocabulary[rows]

    def require_fits(self, target: TargetModel, what: str = "drafter.heads") -> None:
        """Refuse a target these heads cannot have been made for.

        Raises:
            InputError: another hidden size, or another vocabulary.
        """
        fix = f"use heads that were trained for {target.name}"
        vocab, dim = output_weight(target).shape
        if self.dim != dim:
            expected = f"the hidden size {dim} of the target {target.name}"
            raise InputError(what, expected=expected, got=f"heads of {self.dim}", fix=fix)
        known = vocab if self.vocabulary is not None else self.rows(target)
        last = vocab - 1 if self.vocabulary is None else int(self.vocabulary.max())
        if known != vocab or last >= vocab:
            got = f"token id {last}" if last >= vocab else f"output layers of {known}"
            raise InputError(what, expected=f"the {vocab} tokens of the target {target.name}", got=got, fix=fix)


def output_layer(target: TargetModel) -> nn.Module:
    """The target's lm_head, as the model runs it now (`specdec.model.runtime` may have exchanged it).

    Raises:
        InputError: the model has none that is one matrix.
    """
    layer = target.model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Module) or weight is None or weight.ndim != 2:
        expected, got = "a model with an output layer (get_output_embeddings)", type(target.model).__name__
        raise InputError("target", expected=expected, got=got, fix="choose another target")
    return layer


def output_weight(target: TargetModel) -> Float[Tensor, "vocab dim"]:
    """Detached: heads never train the target's output layer."""
    weight: Tensor = output_layer(target).weight.detach()  # type: ignore[operator]
    return weight


def fresh_heads(
    target: TargetModel,
    heads: int,
    layers: int = 1,
    own_output: bool = False,
    vocabulary: Int[Tensor, " rows"] | None = None,
) -> MedusaHeads:
    """Untrained heads in fp32 on the target's device: each guesses what the target's own output layer does."""
    weight = output_weight(target).float()
    rows = weight if vocabulary is None else weight[vocabulary]
    output = rows.expand(heads, -1, -1).clone() if own_output else None
    return MedusaHeads(heads, layers, weight.shape[1], output, vocabulary).to(target.device)
