"""What is trained: a product that joins a token's embedding to the target's hidden state before it, a transformer
layer with keys and values of its own, and a final norm (EAGLE, arXiv 2401.15077). Embeddings and output layer are the
target's.

    entry t     (h_t, token t + 1)  ->  a stand-in for h_{t+1}  ->  output layer  ->  q of token t + 2
    h_t         the target's last hidden state; where the target has not been yet, the stand-in
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
    """join: Linear(2 dim -> dim) over [embedding, hidden state]; student: the layers and the norm."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        dim, device = student.model.config.get_text_config().hidden_size, student.model.device
        self.student = student
        self.join = nn.Linear(2 * dim, dim, bias=False, device=device)
        with torch.no_grad():  # a fresh head begins with their sum
            self.join.weight.copy_(torch.eye(dim).repeat(1, 2))

    @property
    def vocabulary(self) -> Int[Tensor, " rows"] | None:
        """The target's ids of the tokens it may guess, ascending; None: all."""
        return self.student.vocabulary

    def forward(
        self, hidden: Float[Tensor, "batch seq dim"], tokens: Int[Tensor, "batch seq"], steps: int
    ) -> list[Float[Tensor, "batch seq dim"]]:
        """The stand-ins for the hidden states after each entry (hidden before, token), of texts from their beginning.

        The first of the `steps` passes is over true entries. In pass j an entry and the j - 2 before it are drafted:
        made of stand-ins, they see each other and the true entries before them (training-time test, arXiv 2503.01840).
        The first j - 1 positions of pass j mean nothing.
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
        """Itself, or a copy where the target is not in fp32, in which heads are trained."""
        if target.dtype is torch.float32:
            return self
        head = EagleHead(self.student.in_precision_of(target))
        head.join.load_state_dict(self.join.state_dict())
        return head.to(target.dtype)


def fresh_head(
    target: TargetModel, layers: Sequence[int] = (-1,), vocabulary: Int[Tensor, " rows"] | None = None
) -> EagleHead:
    """An untrained head in fp32, of copies of the target's layers of these numbers (-1: its last).

    Raises:
        InputError: layers the target does not have.
    """
    return EagleHead(new_student(target, layers, vocabulary))


def save_head(head: EagleHead, target: TargetModel, folder: Path) -> None:
    """What was trained, in the format of `drafters.shared.trained`."""
    save_parts(head, {"drafter": DRAFTER, "layers": len(head.student.layers)}, target, folder)


def load_head(folder: Path, target: TargetModel, what: str = "drafter.head") -> EagleHead:
    """A head from its folder, on the target's device and in its precision.

    Raises:
        InputError: no head there, a corrupt one, or one for a target of another shape.
    """
    config, state = read_parts(folder, DRAFTER, target, what, {"layers": int})
    head = fresh_head(target, [-1] * config["layers"], state.get("student.vocabulary"))
    fill(head, config, state, target, what)
    return head


def _sees(seq: int, number: int, device: torch.device) -> Bool[Tensor, "seq keys"]:
    """Which of the entries of passes 0 to `number`, one pass after the other, an entry of pass `number` sees: the true
    ones up to `number` places before it, and on the way to itself one of each pass."""
    ago = torch.arange(seq, device=device)[:, None] - torch.arange(seq, device=device)
    return torch.cat([ago >= number, *(ago == number - later for later in range(1, number + 1))], 1)


def _additive(sees: Bool[Tensor, "seq keys"], dtype: torch.dtype) -> Float[Tensor, "1 1 seq keys"]:
    """As every attention of transformers takes it."""
    blind = torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    return blind[None, None]
