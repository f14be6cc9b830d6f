"""The Triton kernel, in Triton's interpreter, against the dense kernel in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec.model.attention.dense import masked_attention
from specdec.model.attention.tree_flash_launch import Seen, Tile, attend, pack, shares
from specdec.trees.tree import TokenTree

TOLERANCE = {  # relative error of the output: one rounding of the result, and of the weights in 16 bits
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


@dataclass(frozen=True)
class Case:
    """One problem: sizes, trees and options. parents: of the block's nodes, one list per row."""

    parents: list[list[int]]
    lengths: list[int]
    heads: tuple[int, int] = (4, 2)
    dim: int = 16
    new: int | None = None
    dtype: torch.dtype = torch.float32
    splits: int | None = 1
    least: int = 32
    page: int = 0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    merge: bool = True

    @property
    def causal(self) -> bool:
        return all(row == list(range(-1, len(row) - 1)) for row in self.parents) and self.window is None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, block = draw(st.integers(1, 2)), draw(st.one_of(st.integers(1, 12), st.integers(60, 70)))
    chain = draw(st.booleans()) and draw(st.booleans())
    parents = [[-1] + [i - 1 if chain else draw(st.integers(0, i - 1)) for i in range(1, block)] for _ in range(batch)]
    kv_heads = draw(st.integers(1, 2))
    return Case(
        parents,
        [draw(st.integers(0, 150)) for _ in range(batch)],
        (kv_heads * draw(st.integers(1, 3)), kv_heads),
        draw(st.sampled_from([32, 64, 80, 128])),
        draw(st.integers(1, block)),
        draw(st.sampled_from(list(TOLERANCE))),
        draw(st.sampled_from([None, 1, 2, 3, 5])),
        draw(st.sampled_from([32, 64])),
        draw(st.sampled_from([0, 0, 16, 32])),
        draw(st.sampled_from([None, None, 1, 5, 40])),
        draw(st.sampled_from([None, 5.0])),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def visible(case: Case, slots: int) -> tuple[Tensor, Tensor]:
    """Which slots each new node sees [batch new slots], and which block nodes [batch new block]."""
    tree = TokenTree.from_rows([[1] * len(row) for row in case.parents], case.parents)
    lengths, block = torch.tensor(case.lengths), tree.tokens.shape[1]
    new = case.new or block
    inside = torch.arange(slots) - lengths[:, None]
    index = inside.clamp(0, block - 1)
    ancestors = tree.ancestor_mask[:, -new:]
    of_block = ancestors.gather(2, index[:, None].expand(-1, new, -1)) & ((inside >= 0) & (inside < block))[:, None]
    seen = of_block | (inside < 0)[:, None]
    if case.window is not None:
        positions = lengths[:, None] + tree.depth
        at = torch.where(inside < 0, torch.arange(slots), positions.gather(1, index))
        seen &= at[:, None] > positions[:, -new:, None] - case.window
    nodes = (lengths[:, None] + torch.arange(block))[:, None].expand(-1, new, -1)
    return seen, seen.gather(2, nodes)


def paged(stored: Tensor, page: int, table: Tensor) -> Tensor:
    """The slots of every row, in the pages of a pool: [1 kv_heads pages * page dim]."""
    batch, kv_heads, slots, dim = stored.shape
    pool = torch.full((kv_heads, table.numel(), page, dim), float("nan"), dtype=stored.dtype)
    for row in range(batch):
        pool[:, table[row]] = stored[row].view(kv_heads, slots // page, page, dim)
    return pool.view(1, kv_heads, -1, dim)


def error(case: Case) -> float:
    """Relative error of the kernel's output. Slots behind the block hold NaN, so reading one shows."""
    torch.manual_seed(0)
    batch, block = len(case.parents), len(case.parents[0])
    heads, kv_heads = case.heads
    slots = -(-(max(case.lengths) + block) // 32) * 32
    query = torch.randn(batch, heads, case.new or block, case.dim).to(case.dtype)
    keys, values = (torch.randn(batch, kv_heads, slots, case.dim).to(case.dtype) for _ in range(2))
    sinks = torch.randn(heads) if case.sinks else None
    seen, in_block = visible(case, slots)
    expected, _ = masked_attention(
        query.double(), keys.double(), values.double(), seen, case.dim**-0.5, case.softcap,
        None if sinks is None else sinks.double(),
    )  # fmt: skip
    for row, length in enumerate(case.lengths):
        keys[row, :, length + block :] = values[row, :, length + block :] = float("nan")
    table = None
    if case.page:
        table = torch.randperm(batch * slots // case.page).view(batch, -1)
        keys, values = paged(keys, case.page, table), paged(values, case.page, table)
    read = Seen(
        torch.tensor(case.lengths),
        block,
        None if case.causal else pack(in_block),
        None if case.window is None else seen.int().argmax(-1),
    )
    ours = attend(
        query, keys, values, read, case.dim**-0.5, softcap=case.softcap, sinks=sinks, table=table, page=case.page,
        splits=case.splits, least=case.least, merge_in_launch=case.merge,
    )  # fmt: skip
    return float((ours.double() - expected).norm() / expected.norm())


@given(cases())
@example(Case([[-1]], [0]))  # nothing committed
@example(Case([[-1, 0, 0], [-1, 0, 1]], [0, 90], splits=4))  # a row without a prefix beside one with
@example(Case([[-1, *range(149)]], [3], new=70))  # three words, a chain
@example(Case([[-1, *([0] * 130)]], [70], new=131, splits=3))  # three words, all siblings
@example(Case([[-1, 0, 0]], [40], dim=256, dtype=torch.bfloat16, splits=3, page=16))
@example(Case([[-1, 0, 0]], [140], window=2, splits=5))  # most shares lie before the window
@settings(max_examples=40, deadline=None)
def test_the_kernel_is_attention(case: Case) -> None:
    assert error(case) < TOLERANCE[case.dtype]


def test_a_wrong_bit_would_show() -> None:
    """The error of a tree with one wrong parent is far above the tolerance."""
    torch.manual_seed(0)
    query, keys, values = torch.randn(1, 1, 5, 32), torch.randn(1, 1, 32, 32), torch.randn(1, 1, 32, 32)
    outs = []
    for last in (1, 2):
        mask = TokenTree.from_rows([[1] * 5], [[-1, 0, 0, 1, last]]).ancestor_mask
        outs.append(attend(query, keys, values, Seen(torch.tensor([7]), 5, pack(mask)), 0.2))
    assert (outs[0] - outs[1])[:, :, :4].abs().max() == 0
    assert (outs[0] - outs[1]).norm() / outs[0].norm() > 1e-2


def test_bits_have_64_nodes_a_word() -> None:
    mask = torch.zeros(2, 3, 130, dtype=torch.bool)
    mask[0, 0, 63] = mask[0, 0, 64] = mask[1, 2, 129] = mask[1, 1, 0] = True
    bits = pack(mask)
    assert bits.shape == (2, 3, 3)
    assert bits[0, 0].tolist() == [-(2**63), 1, 0]
    assert bits[1, 2].tolist() == [0, 0, 2]
    assert bits[1, 1].tolist() == [1, 0, 0]
    assert torch.equal(pack(mask.transpose(1, 2).contiguous().transpose(1, 2)), bits)


def test_keys_are_split_only_as_far_as_programs_are_missing() -> None:
    device = torch.device("cpu")  # the interpreter counts as four processors: eight programs
    assert shares(1, 1, 64, Tile.of(1, 64), device) == 1  # less than one share's slots
    assert shares(1, 1, 4096, Tile.of(1, 64), device) == 8
    assert shares(1, 2, 4096, Tile.of(1, 64), device) == 4
    assert shares(1, 64, 4096, Tile.of(1, 64), device) == 1


@pytest.mark.parametrize("dim", [8, 32, 64, 80, 96, 128, 192, 256])
def test_every_head_size_up_to_256(dim: int) -> None:
    assert error(Case([[-1, 0, 0, 1]], [21], dim=dim, splits=2)) < TOLERANCE[torch.float32]
