"""The heads as a module, with saving and loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from drafters.eagle.head import EagleHead, fresh_head
from drafters.medusa.heads import MedusaHeads, fresh_heads
from drafters.shared.trained import fill, read_parts, save_parts
from specdec.model.target import TargetModel

DRAFTER = "hydra_heads"


class HydraHeads(MedusaHeads):
    """K heads on the target's last hidden state h_t and the tokens t + 1, t + 2, ... of a path (arXiv 2402.05109).

    Head i, counted from 0, guesses token t + 2 + i and reads all tokens t + 1, ..., t + 1 + i before it:

        x = h_t + sum over j <= i of join[i, j] embedding(token t + 1 + j)     then residual blocks, output layer

    The embeddings are the target's own. A fresh `join` is zero, so Hydra heads start as the Medusa heads they are made
    of.

    With a prefix (the paper's Hydra++) the heads also know the text before h_t. A transformer layer with its own keys
    and values, that of an EAGLE head (arXiv 2401.15077), reads every h with the token after it. Its state at the root,
    times `mix`, is added to h_t. A fresh `mix` is zero.

    `join` [pairs dim dim] holds the matrices of the pairs (i, j) in the order (0, 0), (1, 0), (1, 1), (2, 0), ...;
    `mix` is [dim dim]. All other tensors are those of `MedusaHeads` and `EagleHead`.

    Args:
        heads: K.
        layers: residual blocks per head.
        dim: hidden size of the target.
        rest: `output` and `vocabulary`, as in `MedusaHeads`.
        prefix: the layer that reads the text; None for heads without.
    """

    def __init__(
        self, heads: int, layers: int, dim: int, *rest: Tensor | None, prefix: EagleHead | None = None
    ) -> None:
        super().__init__(heads, layers, dim, *rest)
        self.join = nn.Parameter(torch.zeros(heads * (heads + 1) // 2, dim, dim))
        self.prefix = prefix
        if prefix is not None:
            self.mix = nn.Parameter(torch.zeros(dim, dim))

    @classmethod
    def of(cls, medusa: MedusaHeads, prefix: EagleHead | None = None) -> HydraHeads:
        """Return Hydra heads that start as the given Medusa or Hydra heads, with a prefix if one is given."""
        output = None if medusa.output is None else medusa.output.detach().clone()
        heads = cls(medusa.heads, medusa.layers, medusa.dim, output, medusa.vocabulary, prefix=prefix)
        heads.load_state_dict(medusa.state_dict(), strict=False)
        return heads.to(medusa.weight.device, medusa.weight.dtype)

    def entering(
        self, hidden: Float[Tensor, "batch seq dim"], tokens: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq dim"]:
        if self.prefix is None:
            return hidden
        (states,) = self.prefix(hidden, F.pad(tokens[:, 1:], (0, 1)), 1)
        return hidden.to(self.mix.dtype) + F.linear(states, self.mix)

    def joined(self, head: int) -> Float[Tensor, "dim inputs"]:
        """Return the matrix of head i for its i + 1 embeddings, concatenated."""
        first = head * (head + 1) // 2
        return torch.cat(list(self.join[first : first + head + 1]), 1)

    def guesses(
        self, hidden: Float[Tensor, "rows dim"], path: Int[Tensor, "rows heads"], target: TargetModel
    ) -> Float[Tensor, "heads rows dim"]:
        """Return the input of the output layer for every head.

        Args:
            hidden: h_t of each row, from `entering`.
            path: the tokens t + 1, t + 2, ... of each row; head i reads the first i + 1.
            target: the model that the heads are for.
        """
        with torch.no_grad():
            embedded = target.model.get_input_embeddings()(path).to(self.join.dtype)
        read = [F.linear(embedded[:, : head + 1].flatten(1), self.joined(head)) for head in range(self.heads)]
        return self.blocks(hidden.to(self.join.dtype) + torch.stack(read))


def fresh_prefix(target: TargetModel, layers: Sequence[int]) -> EagleHead:
    """Return an untrained prefix in fp32.

    Its output layer is not used, so its vocabulary is a single token.

    Args:
        target: the model that the heads are for.
        layers: target layers to initialise from (-1 = last).

    Raises:
        InputError: the target does not have such layers.
    """
    return fresh_head(target, layers, torch.zeros(1, dtype=torch.long, device=target.device))


def save_heads(heads: HydraHeads, target: TargetModel, folder: Path) -> None:
    """Save the heads in the format of `drafters.shared.trained`."""
    shape = {"heads": heads.heads, "layers": heads.layers, "own_output": heads.output is not None}
    prefix = 0 if heads.prefix is None else len(heads.prefix.student.layers)
    save_parts(heads, {"drafter": DRAFTER, **shape, "prefix": prefix}, target, folder)


def load_heads(folder: Path, target: TargetModel, what: str = "drafter.heads") -> HydraHeads:
    """Load heads from their folder, on the target's device and in its precision.

    Args:
        folder: the folder that training wrote.
        target: the model to draft for.
        what: name used in error messages.

    Raises:
        InputError: the heads are missing, corrupt, or made for a target of another shape.
    """
    kinds = {"heads": int, "layers": int, "own_output": bool}
    config, state = read_parts(folder, DRAFTER, target, what, kinds)
    shape = (config["heads"], config["layers"], config["own_output"], state.get("vocabulary"))
    layers = config.get("prefix", 0)  # missing in files that are older than the prefix
    prefix = fresh_prefix(target, [-1] * layers) if layers else None
    heads = HydraHeads.of(fresh_heads(target, *shape), prefix)
    fill(heads, config, state, target, what)
    return heads
