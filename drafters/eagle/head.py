"""The trained module of EAGLE (arXiv 2401.15077).

It has three parts: a product that joins a token's embedding and the target's hidden state before the token, a
transformer layer with its own keys and values, and a final norm. Embeddings and output layer are the target's.

    entry t     (h_t, token t + 1)  ->  stand-in for h_{t+1}  ->  output layer  ->  q of token t + 2
    h_t         the target's last hidden state, or the stand-in if the target has not read token t yet
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from drafters.shared.trained import fill, read_parts, save_parts
from specdec.model.cache import cache_argument
from specdec.model.students import Student, new_student
from specdec.model.target import TargetModel

DRAFTER = "eagle"


class EagleHead(nn.Module):
    """An EAGLE head: `join` is Linear(2 dim -> dim) over [embedding, hidden state].

    Args:
        student: the layers and the norm.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        dim, device = student.model.config.get_text_config().hidden_size, student.model.device
        self.student = student
        self.join = nn.Linear(2 * dim, dim, bias=False, device=device)
        with torch.no_grad():  # a fresh head adds the two
            self.join.weight.copy_(torch.eye(dim).repeat(1, 2))

    @property
    def vocabulary(self) -> Int[Tensor, " rows"] | None:
        """The target's ids of the tokens that the head can guess, ascending; None for all tokens."""
        return self.student.vocabulary

    def forward(
        self, hidden: Float[Tensor, "batch seq dim"], tokens: Int[Tensor, "batch seq"], steps: int
    ) -> list[Float[Tensor, "batch seq dim"]]:
        """Return the stand-ins for the hidden states after each entry, one tensor per pass (training-time test).

        Pass 1 reads true entries. In pass j an entry and the j - 2 entries before it are drafted: they are made of
        stand-ins, and see each other and the true entries before them (arXiv 2503.01840). The first j - 1 positions of
        pass j are undefined.

        Args:
            hidden: the target's last hidden state before each token.
            tokens: the tokens of the entries, from the beginning of each text.
            steps: number of passes.
        """
        model = self.student.model
        embedded = model.get_input_embeddings()(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        cache, before, passes = DynamicCache(), hidden.to(embedded.dtype), []
        for number in range(steps):
            entering = self.join(torch.cat([embedded, before], -1).to(self.join.weight.dtype))
            mask = _additive(_sees(tokens.shape[1], number, tokens.device), entering.dtype)
            where = {"position_ids": positions, "attention_mask": mask, cache_argument(model): cache}
            states = self.student(tokens, entering, **where, use_cache=True)
            passes.append(states)
            before = torch.cat([states[:, :1], states[:, :-1]], 1).to(embedded.dtype)
        return passes

    def in_precision_of(self, target: TargetModel) -> EagleHead:
        """Return this head if the target is in fp32, else a copy in the target's precision.

        Heads are trained in fp32.
        """
        if target.dtype is torch.float32:
            return self
        head = EagleHead(self.student.in_precision_of(target))
        head.join.load_state_dict(self.join.state_dict())
        return head.to(target.dtype)


def fresh_head(
    target: TargetModel, layers: Sequence[int] = (-1,), vocabulary: Int[Tensor, " rows"] | None = None
) -> EagleHead:
    """Return an untrained head in fp32.

    Args:
        target: the model to draft for.
        layers: target layers to initialise from (-1 = last).
        vocabulary: token ids to guess among, ascending; None for all tokens.

    Raises:
        InputError: the target does not have such layers.
    """
    return EagleHead(new_student(target, layers, vocabulary))


def save_head(head: EagleHead, target: TargetModel, folder: Path) -> None:
    """Save the head in the format of `drafters.shared.trained`."""
    save_parts(head, {"drafter": DRAFTER, "layers": len(head.student.layers)}, target, folder)


def load_head(folder: Path, target: TargetModel, what: str = "drafter.head") -> EagleHead:
    """Load a head from its folder, on the target's device and in its precision.

    Args:
        folder: the folder that training wrote.
        target: the model to draft for.
        what: name used in error messages.

    Raises:
        InputError: the head is missing, corrupt, or made for a target of another shape.
    """
    config, state = read_parts(folder, DRAFTER, target, what, {"layers": int})
    head = fresh_head(target, [-1] * config["layers"], state.get("student.vocabulary"))
    fill(head, config, state, target, what)
    return head


def _sees(seq: int, number: int, device: torch.device) -> Bool[Tensor, "seq keys"]:
    """Return the mask of pass `number`, counted from 0, over the entries of passes 0 to `number` (1 = may see).

    An entry sees the true entries at least `number` positions before it, and one entry of each later pass. For four
    positions in pass 2:

              pass 0    pass 1    pass 2
              0 1 2 3   0 1 2 3   0 1 2 3
        0     0 0 0 0   0 0 0 0   1 0 0 0
        1     0 0 0 0   1 0 0 0   0 1 0 0
        2     1 0 0 0   0 1 0 0   0 0 1 0
        3     1 1 0 0   0 0 1 0   0 0 0 1
    """
    ago = torch.arange(seq, device=device)[:, None] - torch.arange(seq, device=device)
    return torch.cat([ago >= number, *(ago == number - later for later in range(1, number + 1))], 1)


def _additive(sees: Bool[Tensor, "seq keys"], dtype: torch.dtype) -> Float[Tensor, "1 1 seq keys"]:
    """Return the additive mask that every attention of transformers accepts: 0, or the lowest number if unseen."""
    blind = torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    return blind[None, None]
