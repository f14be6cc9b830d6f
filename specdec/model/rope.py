"""Rotary embeddings whose frequencies depend on the length of the text.

- longrope (arXiv 2402.13753) has one set of factors up to `original_max_position_embeddings` and another beyond.
- Dynamic NTK scaling has a base that grows with the text.

transformers takes the length from the largest position of a forward, so the result would depend on neighbours in a
batch, drafted nodes and the chunks that a prompt is read in. Here it depends on each node's own length only:

    length of a node = max(tokens of its row's prompt, position + 1)

`generate` has the same lengths for a text alone, because it reads the prompt in one forward. The model's own modules
compute the embeddings, once for each length that makes a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.errors import InputError

KINDS = ("longrope", "dynamic")
_ENDLESS = 2**30  # a length in tokens that stands for every text read with the long factors of longrope


class RopeByLength(nn.Module):
    """Replaces a rotary embedding of the model. Works on a copy, so that the model's own keeps its state.

    prompts: tokens of each row's prompt, Int [batch], set before each forward. None if unknown: every prompt then
    counts as short.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.own: Any = copy.deepcopy(rope)
        self.prompts: Int[Tensor, " batch"] | None = None

    def forward(self, x: Tensor, position_ids: Int[Tensor, "batch new"], layer_type: str | None = None) -> Any:
        of_layer = {} if layer_type is None else {"layer_type": layer_type}
        kind = _kind(self.own, layer_type)
        if kind is None:
            return self.own(x, position_ids, **of_layer)
        lengths = position_ids + 1
        if self.prompts is not None and len(self.prompts) == len(lengths):
            lengths = torch.maximum(lengths, self.prompts[:, None])
        switch = switch_length(self.own, kind, layer_type)
        if kind == "longrope":
            lengths = torch.where(lengths > switch, _ENDLESS, switch)
            different = [switch, _ENDLESS]
        else:
            lengths = lengths.clamp(min=switch)
            different = sorted(set(lengths.flatten().tolist()))
        cos, sin = self._at(x, position_ids, different[0], of_layer)
        for length in different[1:]:
            here = (lengths == length)[..., None]
            other = self._at(x, position_ids, length, of_layer)
            cos, sin = torch.where(here, other[0], cos), torch.where(here, other[1], sin)
        return cos, sin

    def _at(self, x: Tensor, position_ids: Tensor, length: int, of_layer: dict[str, str]) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for a text of `length` tokens; valid for positions within it.

        Args:
            x: gives dtype and device.
            position_ids: positions.
            length: length of the text in tokens.
            of_layer: keyword arguments that name the layer type, if the embedding has several.
        """
        if _kind(self.own, of_layer.get("layer_type")) == "dynamic":
            self.own(x, position_ids[:, :1] * 0, **of_layer)  # resets the frequencies of a longer text
        within = position_ids.clamp(max=length - 1)
        last = torch.full_like(position_ids[:, :1], length - 1)
        cos, sin = self.own(x, torch.cat([within, last], 1), **of_layer)
        return cos[:, :-1], sin[:, :-1]


class RopeRuntime:
    """Exchanges those rotary embeddings of `model` that depend on a length, and puts them back."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._places = [
            (parent, name, child, RopeByLength(child))
            for parent in list(model.modules())
            for name, child in list(parent.named_children())
            if any(_kind(child, layer_type) for layer_type in _layer_types(child))
        ]

    def install(self) -> None:
        for parent, name, _, ours in self._places:
            setattr(parent, name, ours)

    def remove(self) -> None:
        for parent, name, own, _ in self._places:
            setattr(parent, name, own)

    def read(self, prompts: Int[Tensor, " batch"]) -> None:
        """Set the prompt lengths for the rows of the next forward."""
        for *_, ours in self._places:
            ours.prompts = prompts

    def require_one_side(self, prompts: Sequence[Sequence[int]], new: int, name: str) -> None:
        """Refuse texts that begin within the short factors of longrope and would grow past the length where the long
        ones begin, because transformers then reads the whole text again.

        `name`: name of the model in error messages.

        Raises:
            InputError: names the first such prompt's length.
        """
        switch = self.switch
        for length in map(len, prompts):
            if switch is not None and length <= switch < length + new - 1:
                raise InputError(
                    "prompt",
                    expected=f"prompt and new tokens on one side of {switch} tokens, where the rotary factors of "
                    f"{name} switch (longrope) and its whole text would have to be read again",
                    got=f"{length} + {new}",
                    fix=f"lower generation.max_new_tokens to {switch + 1 - length} or lengthen the prompt",
                )

    @property
    def switch(self) -> int | None:
        """Longest text in tokens that is read with the short factors of longrope; None without longrope."""
        lengths = [
            switch_length(child, "longrope", layer_type)
            for _, _, child, _ in self._places
            for layer_type in _layer_types(child)
            if _kind(child, layer_type) == "longrope"
        ]
        return min(lengths, default=None)


def switch_length(rope: Any, kind: str, layer_type: str | None) -> int:
    """Return the longest text in tokens whose embeddings do not depend on its length."""
    if kind == "dynamic":
        return int(rope.original_max_seq_len)
    parameters = rope.config.rope_parameters
    return int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])


def stretched_window(config: Any) -> int | None:
    """Return the longest text in tokens that a text model's config allows, or None if it gives none.

    YaRN and dynamic scaling reach `factor` times the window that the model was trained with, and configs give that
    window in `max_position_embeddings`.
    """
    window: int | None = getattr(config, "max_position_embeddings", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters, *(inner for inner in parameters.values() if isinstance(inner, dict))]:
        if window is not None and rope.get("rope_type") in ("yarn", "dynamic") and rope.get("factor"):
            trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            window = max(window, int(rope["factor"] * trained))
    return window


def _layer_types(rope: Any) -> list[str | None]:
    kinds = getattr(rope, "rope_type", None)
    return list(kinds) if isinstance(kinds, dict) else [None]


def _kind(rope: Any, layer_type: str | None) -> str | None:
    """Return which of `KINDS` a rotary embedding is, if any."""
    kind = getattr(rope, "rope_type", None)
    kind = kind.get(layer_type) if isinstance(kind, dict) else kind
    return next((known for known in KINDS if isinstance(kind, str) and known in kind), None)
