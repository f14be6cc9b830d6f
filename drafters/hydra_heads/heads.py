"""The heads as a module, and on disk."""

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
    """K heads on the target's last hidden state h_t and the tokens t + 1, t + 2, ... of a path: head i, counted from 0,
    guesses token t + 2 + i, and reads all tokens before it (arXiv 2402.05109).

    What a head makes of their embeddings, the target's own, is added to h_t before its residual blocks. Fresh ones make
    nothing of them: Hydra heads begin as the Medusa heads they are made of.

    With a prefix, they know the text before h_t, too (the paper's Hydra++): a transformer layer with keys and values of
    its own reads every h with the token after it, and what `mix` makes of its state at the root is added to h_t. The
    layer is that of an EAGLE head (arXiv 2401.15077); a fresh `mix` makes nothing of it.

    join [pairs dim dim]: head i's matrix for token t + 1 + j, j <= i, of the pairs (i, j) in the order (0, 0), (1, 0),
    (1, 1), (2, 0), ...; mix [dim dim]. All other tensors are those of `MedusaHeads` and `EagleHead`.
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
        """Heads that begin as these, Medusa's or Hydra's, with a prefix if one is given."""
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
        """Head i's matrix for the i + 1 embeddings it reads, one after the other."""
        first = head * (head + 1) // 2
        return torch.cat(list(self.join[first : first + head + 1]), 1)

    def guesses(
        self, hidden: Float[Tensor, "rows dim"], path: Int[Tensor, "rows heads"], target: TargetModel
    ) -> Float[Tensor, "heads rows dim"]:
        """What the output layer reads, for every head, after the tokens t + 1, t + 2, ..., of which head i reads
        i + 1."""
        with torch.no_grad():
            embedded = target.model.get_input_embeddings()(path).to(self.join.dtype)
        read = [F.linear(embedded[:, : head + 1].flatten(1), self.joined(head)) for head in range(self.heads)]
        return self.blocks(hidden.to(self.join.dtype) + torch.stack(read))


def fresh_prefix(target: TargetModel, layers: Sequence[int]) -> EagleHead:
    """An untrained prefix in fp32, of copies of the target's layers of these numbers (-1: its last). Nobody reads its
    output layer, so it knows a single token.

    Raises:
        InputError: layers the target does not have.
    """
    return fresh_head(target, layers, torch.zeros(1, dtype=torch.long, device=target.device))


def save_heads(heads: HydraHeads, target: TargetModel, folder: Path) -> None:
    """What was trained, in the format of `drafters.shared.trained`."""
    shape = {"heads": heads.heads, "layers": heads.layers, "own_output": heads.output is not None}
    prefix = 0 if heads.prefix is None else len(heads.prefix.student.layers)
    save_parts(heads, {"drafter": DRAFTER, **shape, "prefix": prefix}, target, folder)


def load_heads(folder: Path, target: TargetModel, what: str = "drafter.heads") -> HydraHeads:
    """Heads from their folder, on the target's device and in its precision.

    Raises:
        InputError: no heads there, corrupt ones, or some for a target of another shape.
    """
    kinds = {"heads": int, "layers": int, "own_output": bool}
    config, state = read_parts(folder, DRAFTER, target, what, kinds)
    shape = (config["heads"], config["layers"], config["own_output"], state.get("vocabulary"))
    layers = config.get("prefix", 0)  # absent where heads were saved before there was one
    prefix = fresh_prefix(target, [-1] * layers) if layers else None
    heads = HydraHeads.of(fresh_heads(target, *shape), prefix)
    fill(heads, config, state, target, what)
    return heads
