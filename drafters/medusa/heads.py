"""The heads as a module, which is trained, stored and used for drafting. It knows no files and no trees."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from specdec.errors import InputError
from specdec.model.target import TargetModel


class MedusaHeads(nn.Module):
    """K heads on the target's last hidden state h_t (arXiv 2401.10774, section 2.1.1).

    Head i, counted from 0, guesses token t + 2 + i. (The target's own output layer gives token t + 1.) A head is L
    residual blocks x + SiLU(W x + b) and an output layer: its own, or the target's, which all heads then share. Fresh
    blocks are zero, so an untrained head repeats the target's guess of token t + 1.

    `weight` [layers heads dim dim] and `bias` [layers heads dim] hold the blocks of all heads in one tensor, so that
    one product computes them all. Nothing is shared between heads or layers.

    Args:
        heads: K.
        layers: L, blocks per head.
        dim: hidden size of the target.
        output: output layers of the heads; None shares the target's.
        vocabulary: the target's token ids of the output rows, ascending; None if a head knows all tokens.
    """

    vocabulary: Tensor | None  # a buffer: it moves with the module and is not trained

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
        """Return the input of the output layer for every head."""
        flat = hidden.reshape(1, -1, self.dim).to(self.weight.dtype)
        return self.blocks(flat.expand(self.heads, -1, -1)).reshape(self.heads, *hidden.shape)

    def entering(
        self, hidden: Float[Tensor, "batch seq dim"], tokens: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        """Return the input of `guesses` for whole texts: here the target's hidden states, unchanged.

        Args:
            hidden: the target's last hidden states.
            tokens: the texts, from their first token.
        """
        return hidden

    def guesses(
        self, hidden: Float[Tensor, "rows dim"], path: Int[Tensor, "rows heads"], target: TargetModel
    ) -> Float[Tensor, "heads rows dim"]:
        """Return the input of the output layer for every head, given the tokens that came.

        Args:
            hidden: h_t of each row.
            path: the tokens t + 1, t + 2, ... of each row. Medusa heads do not use them.
            target: the model that the heads are for.
        """
        return self(hidden)

    def blocks(self, x: Float[Tensor, "heads rows dim"]) -> Float[Tensor, "heads rows dim"]:
        for weight, bias in zip(self.weight, self.bias, strict=True):
            x = x + F.silu(torch.baddbmm(bias[:, None], x, weight.mT))
        return x

    def rows(self, target: TargetModel) -> int:
        """Return the number of tokens that the heads know."""
        if self.vocabulary is not None:
            return len(self.vocabulary)
        return output_weight(target).shape[0] if self.output is None else self.output.shape[1]

    def output_rows(self, target: TargetModel) -> list[Float[Tensor, "rows dim"]]:
        """Return each head's output layer; if the heads share the target's, the same tensor for each."""
        if self.output is not None:
            return list(self.output)
        shared = output_weight(target)
        return [shared if self.vocabulary is None else shared[self.vocabulary]] * self.heads

    def output_bias(self, target: TargetModel) -> Float[Tensor, " rows"] | None:
        """Return the bias of the target's output layer, or None if it has none or the heads do not share it."""
        bias = getattr(output_layer(target), "bias", None)
        if bias is None or self.output is not None:
            return None
        shared: Tensor = bias.detach()
        return shared if self.vocabulary is None else shared[self.vocabulary]

    def ids(self, rows: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Return the target's token ids of the output rows."""
        return rows if self.vocabulary is None else self.vocabulary[rows]

    def require_fits(self, target: TargetModel, what: str = "drafter.heads") -> None:
        """Refuse a target that these heads cannot have been made for.

        Args:
            target: the model to draft for.
            what: name used in error messages.

        Raises:
            InputError: the hidden size or the vocabulary differs.
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
    """Return the target's output layer as the model runs it now (`specdec.model.runtime` may have replaced it).

    Raises:
        InputError: the model has no output layer, or one that is not a single matrix.
    """
    layer = target.model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Module) or weight is None or weight.ndim != 2:
        expected, got = "a model with an output layer (get_output_embeddings)", type(target.model).__name__
        raise InputError("target", expected=expected, got=got, fix="choose another target")
    return layer


def output_weight(target: TargetModel) -> Float[Tensor, "vocab dim"]:
    """Return the matrix of the target's output layer, detached, because heads never train it."""
    weight: Tensor = output_layer(target).weight.detach()  # type: ignore[operator]
    return weight


def fresh_heads(
    target: TargetModel,
    heads: int,
    layers: int = 1,
    own_output: bool = False,
    vocabulary: Int[Tensor, " rows"] | None = None,
) -> MedusaHeads:
    """Return untrained heads in fp32 on the target's device; each makes the guess of the target's output layer.

    Args:
        target: the model that the heads are for.
        heads: number of heads.
        layers: residual blocks per head.
        own_output: give each head a copy of the target's output layer.
        vocabulary: token ids to guess among, ascending; None for all tokens.
    """
    weight = output_weight(target).float()
    rows = weight if vocabulary is None else weight[vocabulary]
    output = rows.expand(heads, -1, -1).clone() if own_output else None
    return MedusaHeads(heads, layers, weight.shape[1], output, vocabulary).to(target.device)
