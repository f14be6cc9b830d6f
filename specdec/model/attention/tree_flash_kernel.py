"""The Triton code of `tree_flash`: tree attention in one launch. Imported on demand by `tree_flash.py`.

A program computes one tile of query rows against one share of a row's keys. A query row is one node in one query head;
the heads that share a KV head are folded into rows. Keys are the slots `[0, length + block)` of the cache:

    slots        [ committed prefix | block of the tree ]
    seen by      every node         | the nodes whose ancestor bit is set
    shares       [   0   |   1   |   2   |      3       ]    lengths are read, and shares computed, on the device

The last program of a tile to finish merges the shares (Flash-Decoding, arXiv 2307.08691 section 3.3 and its blog post).
With `MERGE` false it leaves them to a second launch, `merge_shares`.
"""

from __future__ import annotations

from typing import no_type_check  # wrapped in run-time checks, a kernel's source could not be read

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _exponent(top):
    """Return the reference of the exponents: 0 for rows that have seen no key, because inf - inf is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
@no_type_check
def _merged(part, stats, mine, active, M: tl.constexpr, D: tl.constexpr):
    """Return (highest score, sum of weights, weighted sum of values) over the `active` shares of a tile."""
    rows, d = tl.arange(0, M), tl.arange(0, D)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for share in range(active):
        at = mine + share
        # .cg: read from L2, where the other programs' stores are; this processor's L1 may hold older values
        theirs = tl.load(stats + at * 2 * M + rows, cache_modifier=".cg")
        weight = tl.load(stats + at * 2 * M + M + rows, cache_modifier=".cg")
        add = tl.load(part + (at * M + rows)[:, None] * D + d[None, :], cache_modifier=".cg")
        higher = tl.maximum(top, theirs)
        base = _exponent(higher)
        ours, others = tl.exp2(top - base), tl.exp2(theirs - base)
        total = total * ours + weight * others
        acc = acc * ours[:, None] + add * others[:, None]
        top = higher
    return top, total, acc


@triton.jit
@no_type_check
def _finished(top, total, acc, sinks, head, real, HAS_SINKS: tl.constexpr):
    """Return the output of a tile: a sink adds weight and no value; a row that has seen no key gives zeros."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        higher = tl.maximum(top, sink)
        keep = tl.exp2(top - higher)
        total, acc = total * keep + tl.exp2(sink - higher), acc * keep[:, None]
    return acc / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
@no_type_check
def _where(tile, group, kv_heads, new, GROUPS: tl.constexpr, M: tl.constexpr):
    """Return batch row, KV head, and per query row of a tile: its query head, its node, and whether it exists."""
    row = tile * M + tl.arange(0, M)
    batch, kv_head = (group // kv_heads).to(tl.int64), (group % kv_heads).to(tl.int64)
    return batch, kv_head, kv_head * GROUPS + row // new, row % new, row < GROUPS * new


@triton.jit
@no_type_check
def _shares(end, SPLITS: tl.constexpr, N: tl.constexpr, LEAST: tl.constexpr):
    """Return slots per share, and the number of shares: fewer than SPLITS if they would be under LEAST slots."""
    share = tl.maximum(tl.cdiv(tl.cdiv(end, SPLITS), N) * N, LEAST)
    return share, tl.maximum(tl.cdiv(end, share), 1)


@triton.jit(do_not_specialize=["new", "block"])
@no_type_check
def tree_attention(
    q, k, v, bits, first, lengths, table, sinks, out, part, stats, arrived, scale, softcap,
    q_b, q_h, q_n, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_n, t_b, kv_heads, new, block, dim,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, PAGE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr,
    MERGE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute attention of the new nodes of a block.

    Args:
        q: queries, [batch heads new dim].
        k: keys of all slots, [batch kv_heads slots dim]; with PAGE of a pool, [kv_heads pages * PAGE dim].
        v: values, likewise.
        bits: ancestors of each new node in the block, 64 a word, int64 [batch new WORDS]; unused if CAUSAL.
        first: first slot each new node sees, int64 [batch new]; read if WINDOW.
        lengths: committed slots of each row, int64 [batch].
        table: page of each PAGE slots of a row, int [batch pages]; read if PAGE.
        sinks: one logit per query head; read if SINKS.
        out: [batch heads new dim].
        part: weighted sums of the shares, fp32 [batch kv_heads tiles SPLITS M D].
        stats: highest scores and sums of weights, fp32 [batch kv_heads tiles SPLITS 2 M].
        arrived: number of shares that are done, int32 [batch kv_heads tiles], all 0; left at 0.
        scale: factor of the scores.
        softcap: scores become softcap * tanh(scores / softcap) if SOFTCAP.
        q_b: strides by batch row, head, node or slot of each tensor follow; the last dimension is contiguous.
        new: number of new nodes, the last of the block's `block` nodes.
        dim: head size, at most D.
        WORDS: words per node in `bits`.
        GROUPS: query heads per KV head.
        SPLITS: most shares of the keys.
        LEAST: fewest slots of a share.
        WIDE: compute products in fp32 (fp32 inputs; bf16 in Triton's interpreter).
        MERGE: merge the shares in this launch.
        M: query rows of a tile.
        N: slots read at once.
        D: head size rounded up to a power of two.
    """
    tile, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, kv_head, head, node, real = _where(tile, group, kv_heads, new, GROUPS, M)
    d = tl.arange(0, D)
    inside_head = d < dim
    length = tl.load(lengths + batch).to(tl.int32)
    end = length + block
    begin = length * 0
    if WINDOW:
        earliest = tl.load(first + batch * new + node, mask=real, other=end).to(tl.int32)
        begin = tl.min(earliest, 0) // N * N
    share, active = _shares(end - begin, SPLITS, N, LEAST)
    if split < active:
        at = batch * q_b + head * q_h + node * q_n
        qs = tl.load(q + at[:, None] + d[None, :], mask=real[:, None] & inside_head[None, :], other=0.0)
        if WIDE:
            qs = qs.to(tl.float32)
        top = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, D], tl.float32)
        low = begin + split * share
        for start in range(low, tl.minimum(end, low + share), N):
            slot = start + tl.arange(0, N)
            there = slot < end
            if PAGE:
                page = tl.load(table + batch * t_b + slot // PAGE, mask=there, other=0).to(tl.int64)
                place = page * PAGE + slot % PAGE
            else:
                place = slot.to(tl.int64)
            k_at = k + batch * k_b + kv_head * k_h + place[None, :] * k_s + d[:, None]
            v_at = v + batch * v_b + kv_head * v_h + place[:, None] * v_s + d[None, :]
            ks = tl.load(k_at, mask=there[None, :] & inside_head[:, None], other=0.0)
            vs = tl.load(v_at, mask=there[:, None] & inside_head[None, :], other=0.0)
            if WIDE:
                ks, vs = ks.to(tl.float32), vs.to(tl.float32)
            scores = tl.dot(qs, ks, input_precision="ieee") * scale
            if SOFTCAP:
                scores = (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0) * softcap
            scores = scores * LOG2_E
            seen = there[None, :] & real[:, None]
            if start + N > length:  # this tile reaches into the block
                inside = slot - length  # number of the node in the block, negative in the prefix
                if CAUSAL:
                    seen = seen & (inside[None, :] <= node[:, None] + (block - new))
                else:
                    word = tl.load(
                        bits + (batch * new + node[:, None]) * WORDS + (inside // 64)[None, :],
                        mask=seen & (inside >= 0)[None, :],
                        other=0,
                    )
                    ancestor = ((word >> (inside % 64).to(tl.int64)[None, :]) & 1) != 0
                    seen = seen & ((inside < 0)[None, :] | ancestor)
            if WINDOW:
                seen = seen & (slot[None, :] >= earliest[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            base = _exponent(higher)
            weights = tl.exp2(scores - base[:, None])
            keep = tl.exp2(top - base)
            total = total * keep + tl.sum(weights, 1)
            acc = acc * keep[:, None] + tl.dot(weights.to(vs.dtype), vs, input_precision="ieee")
            top = higher
        to = out + (batch * o_b + head * o_h + node * o_n)[:, None] + d[None, :]
        written = real[:, None] & inside_head[None, :]
        if SPLITS == 1:
            done = _finished(top, total, acc, sinks, head, real, SINKS)
            tl.store(to, done.to(out.dtype.element_ty), mask=written)
        else:
            number = group * tl.num_programs(0) + tile
            mine, rows = number * SPLITS, tl.arange(0, M)
            tl.store(part + ((mine + split) * M + rows)[:, None] * D + d[None, :], acc)
            tl.store(stats + (mine + split) * 2 * M + rows, top)
            tl.store(stats + (mine + split) * 2 * M + M + rows, total)
            if MERGE:
                tl.debug_barrier()  # every thread has stored its part before one of them counts the program in
                if tl.atomic_add(arrived + number, 1, sem="acq_rel") == active - 1:
                    top, total, acc = _merged(part, stats, mine, active, M, D)
                    done = _finished(top, total, acc, sinks, head, real, SINKS)
                    tl.store(to, done.to(out.dtype.element_ty), mask=written)
                    tl.store(arrived + number, 0)  # ready for the next layer


@triton.jit(do_not_specialize=["new", "block"])
@no_type_check
def merge_shares(
    first, lengths, sinks, out, part, stats, o_b, o_h, o_n, kv_heads, new, block, dim,
    GROUPS: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Merge the shares that `tree_attention` left with MERGE false. Arguments as in `tree_attention`."""
    tile, group = tl.program_id(0), tl.program_id(1)
    batch, _, head, node, real = _where(tile, group, kv_heads, new, GROUPS, M)
    length = tl.load(lengths + batch).to(tl.int32)
    end = length + block
    begin = length * 0
    if WINDOW:
        begin = tl.min(tl.load(first + batch * new + node, mask=real, other=end).to(tl.int32), 0) // N * N
    _, active = _shares(end - begin, SPLITS, N, LEAST)
    top, total, acc = _merged(part, stats, (group * tl.num_programs(0) + tile) * SPLITS, active, M, D)
    d = tl.arange(0, D)
    to = out + (batch * o_b + head * o_h + node * o_n)[:, None] + d[None, :]
    done = _finished(top, total, acc, sinks, head, real, SINKS)
    tl.store(to, done.to(out.dtype.element_ty), mask=real[:, None] & (d < dim)[None, :])


@triton.jit
@no_type_check
def pack_bits(mask, bits, block, m_b, m_n, new, WORDS: tl.constexpr):
    """Write the rows of a boolean mask as words of 64 bits.

    Args:
        mask: [batch new block].
        bits: int64 [batch new WORDS].
        block: columns of the mask.
        m_b: stride of the mask by batch row.
        m_n: stride by node.
        new: nodes per batch row.
        WORDS: words per node.
    """
    row, word = tl.program_id(0), tl.program_id(1)
    place = word * 64 + tl.arange(0, 64)
    at = mask + (row // new) * m_b + (row % new) * m_n + place
    seen = tl.load(at, mask=place < block, other=0).to(tl.int64)
    tl.store(bits + row * WORDS + word, tl.sum(seen << tl.arange(0, 64).to(tl.int64), 0))
