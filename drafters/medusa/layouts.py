"""The names that published files give to the tensors of the heads.

Numbers of heads and blocks come from the keys, never from a config.

layout         keys of head i, block j of L
official       {i}.{j}.linear.weight|bias, and {i}.{L}.weight if the head has its own output layer
               (the same after `medusa_head.` in full models, whose other tensors are ignored)
TGI            the official keys
vLLM           blocks.{i}.layers.{j}.weight|bias, lm_heads.{i}.weight, token_map
TensorRT-LLM   medusa_heads.{i}.medusa_layers.{j}.linear.weight|bias, medusa_heads.{i}.lm_head.weight
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drafters.medusa.files import Source

LAYOUTS = {
    "official": (
        r"(?:medusa_heads?\.)?(?P<head>\d{1,9})\.(?P<layer>\d{1,9})\.linear\.(?P<kind>weight|bias)",
        r"(?:medusa_heads?\.)?(?P<head>\d{1,9})\.(?P<layer>\d{1,9})\.weight",
    ),
    "vLLM": (
        r"(?:medusa_heads\.)?blocks\.(?P<head>\d{1,9})\.layers\.(?P<layer>\d{1,9})\.(?P<kind>weight|bias)",
        r"(?:medusa_heads\.)?lm_heads\.(?P<head>\d{1,9})\.weight",
    ),
    "TensorRT-LLM": (
        r"medusa_heads\.(?P<head>\d{1,9})\.medusa_layers\.(?P<layer>\d{1,9})\.linear\.(?P<kind>weight|bias)",
        r"medusa_heads\.(?P<head>\d{1,9})\.lm_head\.weight",
    ),
}
TOKEN_MAP = "token_map"


@dataclass(frozen=True)
class Place:
    """The part of the heads that a tensor is.

    Args:
        head: number of the head.
        layer: number of the block, None for the output layer.
        kind: `weight` or `bias`.
        number: the number in the key of an official output layer; it must equal the number of blocks.
    """

    head: int
    layer: int | None
    kind: str
    number: int | None = None

    @property
    def name(self) -> str:
        part = "output layer" if self.layer is None else f"block {self.layer} {self.kind}"
        return f"head {self.head} {part}"


def places_of(keys: Sequence[str], patterns: tuple[str, str]) -> dict[str, Place]:
    block, output = (re.compile(pattern) for pattern in patterns)
    places = {}
    for key in keys:
        if match := block.fullmatch(key):
            places[key] = Place(int(match["head"]), int(match["layer"]), match["kind"])
        elif match := output.fullmatch(key):
            number = match.groupdict().get("layer")
            places[key] = Place(int(match["head"]), None, "weight", None if number is None else int(number))
    return places


class Parts:
    """The tensors of the heads by place, checked to be complete. The keys determine the numbers of heads and blocks.

    Args:
        source: the files; makes the errors.
        places: the place of each key.
        tensors: the tensor of each key.

    Raises:
        InputError: a tensor that is missing, not floating-point or of the wrong shape.
    """

    def __init__(self, source: Source, places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> None:
        self.source = source
        self._tensors = {(p.head, p.layer, p.kind): tensors[key] for key, p in places.items()}
        self.keys = {(p.head, p.layer, p.kind): key for key, p in places.items()}
        blocks = {p for p in places.values() if p.layer is not None}
        self.heads = 1 + max(p.head for p in places.values())
        self.layers = 1 + max((p.layer for p in blocks if p.layer is not None), default=-1)
        self.has_bias = any(p.kind == "bias" for p in blocks)
        for place in places.values():
            if place.number is not None and place.number != self.layers:
                raise source.error(
                    f"the output layer of head {place.head} after {self.layers} blocks", f"`{place.number}.weight`"
                )
        self.outputs = sorted(head for head, layer, _ in self._tensors if layer is None)
        every = ((h, j, k) for j in range(self.layers) for h in range(self.heads) for k in self._kinds)
        missing = next(
            (place for place in every if place not in self._tensors), None
        )  # lazy, because a key may claim billions of heads
        if missing is not None:
            raise source.error(
                f"{self.heads} heads of {self.layers} blocks, as the other keys say",
                f"no {missing[2]} of head {missing[0]}, block {missing[1]}",
                "a truncated file? fetch it again",
            )
        whole = [place for place in self._tensors if place[1] is not None]
        self._require_floats()
        first = self._tensors[whole[0]] if whole else self._tensors[self.outputs[0], None, "weight"]
        self.dim, self.dtype = first.shape[-1], first.dtype
        for head, layer, kind in whole:
            self._require_shape(head, layer, kind, (self.dim, self.dim) if kind == "weight" else (self.dim,))

    def _require_floats(self) -> None:
        for place, tensor in self._tensors.items():
            if not tensor.is_floating_point() or tensor.ndim == 0:
                got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise self.source.error(f"`{self.keys[place]}` with floating-point numbers, a row or more", got)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.has_bias else ("weight",)

    def stacked(self, kind: str) -> Tensor:
        """Return the weights or biases of all blocks, [layers heads ...]."""
        layers = [[self._tensors[h, j, kind] for h in range(self.heads)] for j in range(self.layers)]
        shape = (0, self.heads, self.dim) + ((self.dim,) if kind == "weight" else ())
        return torch.stack([torch.stack(layer) for layer in layers]) if layers else torch.zeros(shape)

    def output(self, head: int, rows: int | None = None) -> Tensor:
        weight = self._tensors[head, None, "weight"]
        self._require_shape(head, None, "weight", (weight.shape[0] if rows is None else rows, self.dim))
        return weight

    def _require_shape(self, head: int, layer: int | None, kind: str, shape: tuple[int, ...]) -> None:
        got = tuple(self._tensors[head, layer, kind].shape)
        if got != shape:
            raise self.source.error(f"`{self.keys[head, layer, kind]}` of shape {shape}", f"{got}")
