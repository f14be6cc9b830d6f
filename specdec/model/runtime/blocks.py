"""Lay out the blocks of GGUF files for the kernels (`kernels/blocks.hpp`). Codes and scales keep their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from specdec.model.runtime.packed import Packed

BLOCK = 32  # weights of a block in the kernels' layout


@dataclass(frozen=True)
class BlockFormat:
    """A block format of GGUF files.

    Args:
        weights: weights of a block in the file.
        bytes: bytes of a block in the file.
        split: returns codes [outputs, inputs] and scales [outputs, ...] of blocks [outputs, blocks, bytes].
        nibbles: whether codes are kept in 4 bits, otherwise in 8.
    """

    weights: int
    bytes: int
    split: Callable[[Tensor], tuple[Tensor, Tensor]]
    nibbles: bool


def pack_blocks(raw: UInt8[Tensor, "outputs row"], form: str) -> Packed:
    """Return a matrix of the block format `form` (a key of `FORMATS`), from the bytes of its rows in the file."""
    kind = FORMATS[form]
    codes, scale = kind.split(raw.unflatten(1, (-1, kind.bytes)))
    inputs = codes.shape[1]
    return Packed(form, (_words(codes) if kind.nibbles else codes.to(torch.int8)).contiguous(), scale, inputs)


def _words(codes: UInt8[Tensor, "outputs inputs"]) -> UInt8[Tensor, "outputs half"]:
    """Return 4-bit codes as words of 16 bits, 8 words a block: nibble v of word j is code 8 v + j."""
    nibbles = codes.unflatten(1, (-1, 4, 8))
    low, high = nibbles[:, :, 0] | nibbles[:, :, 1] << 4, nibbles[:, :, 2] | nibbles[:, :, 3] << 4
    return torch.stack([low, high], -1).flatten(1)


def _halves(raw: Tensor, start: int, count: int = 1) -> Tensor:
    """Return `count` fp16 numbers of every block, [outputs, count * blocks]: all first numbers, then all second."""
    numbers = raw[..., start : start + 2 * count].contiguous().view(torch.float16)
    return numbers.transpose(1, 2).flatten(1).contiguous()


def _low_then_high(raw: Tensor) -> Tensor:
    """Return the nibbles of bytes [outputs, blocks, n]: of each block all low halves, then all high ones."""
    return torch.cat([raw & 15, raw >> 4], -1)


def _q4_0(raw: Tensor) -> tuple[Tensor, Tensor]:
    return _low_then_high(raw[..., 2:]).flatten(1), _halves(raw, 0)


def _q4_1(raw: Tensor) -> tuple[Tensor, Tensor]:
    return _low_then_high(raw[..., 4:]).flatten(1), _halves(raw, 0, 2)


def _q8_0(raw: Tensor) -> tuple[Tensor, Tensor]:
    return raw[..., 2:].contiguous().view(torch.int8).flatten(1), _halves(raw, 0)


def _scales_and_minima(raw: Tensor) -> Tensor:
    """Return records [d, dmin, 8 scales, 8 minima] of 20 bytes: the 6-bit numbers of a block become bytes."""
    first, second, mixed = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = torch.cat([first & 63, mixed & 15 | first >> 2 & 48], -1)
    minima = torch.cat([second & 63, mixed >> 4 | second >> 2 & 48], -1)
    return torch.cat([raw[..., :4], scales, minima], -1).flatten(1).contiguous()


def _q4_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    codes = _low_then_high(raw[..., 16:].unflatten(-1, (4, 32)))
    return codes.flatten(1), _scales_and_minima(raw)


def _q5_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    low = _low_then_high(raw[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(2, 3)
    high = torch.stack([raw[..., 16:48] >> bit & 1 for bit in range(8)], 2)
    return (low | high << 4).flatten(1), _scales_and_minima(raw)


def _q6_k(raw: Tensor) -> tuple[Tensor, Tensor]:
    low = _low_then_high(raw[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, 32)).flatten(2, 3)
    pairs = raw[..., 128:192].unflatten(-1, (2, 32))
    high = torch.stack([pairs >> bit & 3 for bit in (0, 2, 4, 6)], 3).flatten(2, 3)
    codes = (low | high << 4).to(torch.int8) - 32
    return codes.flatten(1), torch.cat([raw[..., 208:210], raw[..., 192:208]], -1).flatten(1).contiguous()


FORMATS = {
    "Q4_0": BlockFormat(32, 18, _q4_0, nibbles=True),
    "Q4_1": BlockFormat(32, 20, _q4_1, nibbles=True),
    "Q8_0": BlockFormat(32, 34, _q8_0, nibbles=False),
    "Q4_K": BlockFormat(256, 144, _q4_k, nibbles=True),
    "Q5_K": BlockFormat(256, 176, _q5_k, nibbles=False),
    "Q6_K": BlockFormat(256, 210, _q6_k, nibbles=False),
}
