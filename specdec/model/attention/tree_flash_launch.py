"""Launch the Triton kernel of `tree_flash`: choose tile and number of shares, pass strides, keep its scratch memory.

Imported on demand by `tree_flash.py`, because it imports Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.model.attention import tree_flash_kernel as kernel
from specdec.model.attention.protocol import Keys, Out, Query, Values

LEAST_SHARE = 256  # slots; a smaller share costs more to merge than it saves
MOST_SHARES = 64
PROGRAMS_PER_PROCESSOR = 2
PROCESSORS = 4  # of Triton's interpreter, which has none


@dataclass(frozen=True)
class Tile:
    """The sizes of one program.

    Args:
        rows: query rows (nodes x query heads of a KV head).
        slots: cache slots read at once.
        dim: head size rounded up to a power of two.
        warps: groups of 32 threads.
        stages: reads in flight.
    """

    rows: int
    slots: int
    dim: int
    warps: int
    stages: int

    @staticmethod
    def of(rows: int, dim: int, itemsize: int = 2) -> Tile:
        """Return the tile for `rows` query rows and heads of `dim` numbers of `itemsize` bytes.

        It has at least 16 rows, because matrix units multiply no fewer.
        """
        wide = max(16, triton.next_power_of_2(dim))
        narrow = itemsize > 2  # fp32 products use no matrix units: larger tiles do not fit into registers
        height = min(max(16, triton.next_power_of_2(rows)), 16 if narrow else 64)
        large = wide * itemsize > 256
        return Tile(height, 32 if large else 64, wide, 8 if height * wide >= 4096 or narrow else 4, 2 if large else 3)


@dataclass(frozen=True)
class Seen:
    """Which slots the new nodes of a forward see.

    Args:
        lengths: committed slots of each row, which all nodes see.
        block: number of nodes in the block behind them.
        bits: ancestors of each node in the block, 64 nodes a word; None for a causal chain.
        first: first slot that each node sees, for layers with a window or chunks; None for 0.
    """

    lengths: Int[Tensor, " batch"]
    block: int
    bits: Int[Tensor, "batch new words"] | None
    first: Int[Tensor, "batch new"] | None = None


@torch.library.custom_op("specdec::pack_bits", mutates_args=(), schema="(Tensor mask) -> Tensor")
def _packed(mask: Tensor) -> Tensor:
    batch, new, block = mask.shape
    words = (block + 63) // 64
    bits = torch.empty(batch, new, words, dtype=torch.int64, device=mask.device)
    mask = mask if mask.stride(2) == 1 else mask.contiguous()
    kernel.pack_bits[batch * new, words](mask, bits, block, mask.stride(0), mask.stride(1), new, WORDS=words)
    return bits


@_packed.register_fake
def _(mask: Tensor) -> Tensor:
    batch, new, block = mask.shape
    return mask.new_empty(batch, new, (block + 63) // 64, dtype=torch.int64)


def pack(mask: Bool[Tensor, "batch new block"]) -> Int[Tensor, "batch new words"]:
    """Return a mask as words of 64 bits, in one launch."""
    bits: Tensor = _packed(mask)
    return bits


def shares(rows: int, groups: int, slots: int, tile: Tile, device: torch.device) -> int:
    """Return the number of shares into which the keys are split, a power of two, so that all processors work.

    Args:
        rows: query rows per group.
        groups: batch rows x KV heads.
        slots: capacity of the cache.
        tile: sizes of a program.
        device: the device.
    """
    programs = groups * triton.cdiv(rows, tile.rows)
    wanted = PROGRAMS_PER_PROCESSOR * _processors(device) // programs
    most = min(MOST_SHARES, triton.cdiv(slots, LEAST_SHARE))
    return max(1, min(triton.next_power_of_2(max(1, wanted)), triton.next_power_of_2(most)))


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


def attend(
    query: Query,
    keys: Keys,
    values: Values,
    seen: Seen,
    scale: float,
    *,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    table: Int[Tensor, "batch pages"] | None = None,
    page: int = 0,
    splits: int | None = None,
    least: int = LEAST_SHARE,
    merge_in_launch: bool = True,
) -> Out:
    """Compute attention of the new nodes to the slots that they see.

    Args:
        query: of the new nodes.
        keys: all slots; with a page table a pool of pages, [1 kv_heads pages * page dim].
        values: likewise.
        seen: which slots the nodes see.
        scale: factor of the scores.
        softcap: see `masked_attention`.
        sinks: see `masked_attention`.
        table: number of the page in the pool that holds each `page` slots of a row.
        page: slots of a page, a power of two; 0 for none.
        splits: most shares of the keys; None for `shares`.
        least: fewest slots of a share.
        merge_in_launch: let the last program merge the shares, instead of a second launch.
    """
    (batch, heads, new, dim), kv_heads = query.shape, keys.shape[1]
    groups = heads // kv_heads
    tile = Tile.of(groups * new, dim, query.element_size())
    slots = table.shape[1] * page if table is not None else keys.shape[2]
    device = query.device
    splits = splits or shares(groups * new, batch * kv_heads, slots, tile, device)
    tiles = triton.cdiv(groups * new, tile.rows)
    grid = (tiles, batch * kv_heads, splits)
    size = tiles * batch * kv_heads * splits * tile.rows if splits > 1 else 1
    part = torch.empty(size * (tile.dim if splits > 1 else 1), dtype=torch.float32, device=device)
    stats = torch.empty(2 * size, dtype=torch.float32, device=device)
    arrived = torch.zeros(tiles * batch * kv_heads, dtype=torch.int32, device=device) if splits > 1 else stats
    out = torch.empty(batch, new, heads, dim, dtype=query.dtype, device=device).transpose(1, 2)
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys, values))
    none = seen.lengths  # stands for tensors that this launch does not read
    of_rows = table is None  # a pool of pages has no batch axis
    sizes = {"M": tile.rows, "N": tile.slots, "D": tile.dim}
    options = {"GROUPS": groups, "SPLITS": splits, "LEAST": least, "WINDOW": seen.first is not None,
               "SINKS": sinks is not None}  # fmt: skip
    first, bits, caps = (none if x is None else x for x in (seen.first, seen.bits, sinks))
    kernel.tree_attention[grid](
        query, keys, values, bits, first, seen.lengths, none if table is None else table, caps, out, part, stats,
        arrived, scale, softcap or 1.0,
        *query.stride()[:3], keys.stride(0) * of_rows, *keys.stride()[1:3], values.stride(0) * of_rows,
        *values.stride()[1:3], *out.stride()[:3], 0 if table is None else table.stride(0), kv_heads, new, seen.block,
        dim, WORDS=1 if seen.bits is None else seen.bits.shape[-1], PAGE=page, CAUSAL=seen.bits is None,
        SOFTCAP=softcap is not None, WIDE=query.dtype is torch.float32 or device.type != "cuda",
        MERGE=merge_in_launch, **options, **sizes, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1 and not merge_in_launch:
        kernel.merge_shares[grid[:2]](
            first, seen.lengths, caps, out, part, stats, *out.stride()[:3], kv_heads, new, seen.block, dim,
            **options, **sizes, num_warps=tile.warps,
        )  # fmt: skip
    return out


@torch.library.custom_op(
    "specdec::tree_flash",
    mutates_args=(),
    schema="(Tensor query, Tensor keys, Tensor values, Tensor lengths, SymInt block, Tensor? bits, Tensor? first, "
    "float scale, float? softcap, Tensor? sinks, bool merge_in_launch) -> Tensor",
)
def _operator(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    block: int,
    bits: Tensor | None,
    first: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    merge_in_launch: bool,
) -> Tensor:
    """`attend` as one operator that a compiler does not look into; arguments as there.

    Returns [batch new heads dim].
    """
    seen = Seen(lengths, block, bits, first)
    out = attend(query, keys, values, seen, scale, softcap=softcap, sinks=sinks, merge_in_launch=merge_in_launch)
    return out.transpose(1, 2)


@_operator.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    batch, heads, new, dim = query.shape
    return query.new_empty(batch, new, heads, dim)


def launched(
    query: Query,
    keys: Keys,
    values: Values,
    seen: Seen,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    merge_in_launch: bool,
) -> Out:
    """Call `attend`, as an operator if a compiler traces the model. Arguments as in `attend`."""
    if not torch.compiler.is_compiling():
        return attend(query, keys, values, seen, scale, softcap=softcap, sinks=sinks, merge_in_launch=merge_in_launch)
    read = seen.lengths, seen.block, seen.bits, seen.first
    return _operator(query, keys, values, *read, scale, softcap, sinks, merge_in_launch).transpose(1, 2)
