"""Kernels against the definition of attention in float64."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from specdec.errors import InputError
from specdec.model.attention import registry, tree_flash
from specdec.model.attention.aten_flash import AtenFlash
from specdec.model.attention.context import AttentionContext
from specdec.model.attention.dense import Dense, masked_attention
from specdec.model.attention.flash_attn import FlashAttn
from specdec.model.attention.masks import MaskFunction, tree_mask
from specdec.model.attention.protocol import PrefixKernel, merge
from specdec.model.attention.registry import choose_kernel
from specdec.model.attention.tree_flash import TreeFlash
from specdec.model.cache import TreeCache

TOLERANCE = 2e-6  # fp32 sums of a few dozen terms of order one
HEADS, KV_HEADS, DIM, CAPACITY, NEW = 6, 2, 16, 40, 5
LENGTHS = [7, 33, 20]
FLASH_SOURCES = Path(sys.prefix) / "flash-attn-sources"


def definition(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.double().repeat_interleave(groups, 1), values.double().repeat_interleave(groups, 1)
    scores = (query.double() @ keys.transpose(-1, -2) * scale).masked_fill(~mask[:, None], float("-inf"))
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def problem(lengths: list[int]) -> tuple[AttentionContext, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    batch = len(lengths)
    cache = TreeCache([(KV_HEADS, DIM, DIM)], batch, CAPACITY, torch.float32, torch.device("cpu"))
    keys, values = cache.layer(0)
    keys.normal_()
    values.normal_()
    cache.advance(lengths)
    positions = cache.lengths[:, None] + torch.arange(NEW)
    context = AttentionContext(AtenFlash(), cache, cache.lengths, lengths, positions, NEW, None)
    return context, torch.randn(batch, HEADS, NEW, DIM), keys, values


@pytest.mark.parametrize("kernel", [AtenFlash(), Dense()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("lengths", [LENGTHS, [12, 12], [1]], ids=str)
def test_prefix_attends_to_each_rows_own_length(kernel: PrefixKernel, lengths: list[int]) -> None:
    context, query, keys, values = problem(lengths)
    mask = (torch.arange(CAPACITY) < context.lengths[:, None])[:, None].expand(-1, NEW, -1)
    expected = definition(query, keys, values, mask, 0.25)
    for ours, theirs in zip(kernel.prefix(query, keys, values, context, 0.25), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kernel", [AtenFlash(), Dense()], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("lengths", [[0, 7], [0, 0]], ids=str)
def test_a_row_without_a_prefix_adds_nothing(kernel: PrefixKernel, lengths: list[int]) -> None:
    """A row may be empty while another of its batch is not: merged with the block, the block alone is left."""
    context, query, keys, values = problem(lengths)
    out, lse = kernel.prefix(query, keys, values, context, 0.25)
    assert out.isfinite().all()
    assert (lse[0] == -torch.inf).all()
    block = kernel.causal(query, keys[:, :, :NEW], values[:, :, :NEW], 0.25)
    torch.testing.assert_close(merge(out, lse, *block)[0], block[0][0].to(out.dtype))


@pytest.mark.parametrize("kernel", [AtenFlash(), Dense()], ids=lambda kernel: kernel.name)
def test_causal(kernel: PrefixKernel) -> None:
    _, query, keys, values = problem([1, 1])
    keys, values = keys[:, :, :NEW], values[:, :, :NEW]
    mask = torch.ones(NEW, NEW, dtype=torch.bool).tril().expand(2, -1, -1)
    expected = definition(query, keys, values, mask, 0.25)
    for ours, theirs in zip(kernel.causal(query, keys, values, 0.25), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=TOLERANCE, rtol=0)


def test_merging_two_halves_is_attention_over_both() -> None:
    _, query, keys, values = problem(LENGTHS)
    left = (torch.arange(CAPACITY) < 11).expand(3, NEW, -1)
    whole, _ = masked_attention(query, keys, values, torch.ones_like(left), 0.25)
    parts = [masked_attention(query, keys, values, mask, 0.25) for mask in (left, ~left)]
    torch.testing.assert_close(merge(*parts[0], *parts[1]), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        (
            sliding_window_causal_mask_function(4),
            4,
            [
                [[1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 1, 0, 0, 0]],
                [[0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0, 1, 0]],
            ],
        ),
        (
            chunked_causal_mask_function(2, torch.zeros(2, dtype=torch.long)),
            2,
            [
                [[0, 0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0, 0]],
                [[0, 0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 0]],
            ],
        ),
    ],
    ids=["window of 4", "chunks of 2"],
)
def test_a_node_sees_what_its_path_and_the_models_rule_allow(
    rule: MaskFunction, size: int, expected: list[list[list[int]]]
) -> None:
    """Two rows, lengths 3 and 5, block root -> (a, b); positions of row 0: root 3, a 4, b 4."""
    context = two_rows()
    mask = tree_mask(q_offset=context, mask_function=rule, local_size=size)
    assert mask is not None
    assert mask[:, 0].int().tolist() == expected


def test_a_rule_that_forbids_nothing_makes_no_mask() -> None:
    context = two_rows()
    assert tree_mask(q_offset=context, mask_function=causal_mask_function) is None
    assert tree_mask(q_offset=context, mask_function=sliding_window_causal_mask_function(9), local_size=9) is None
    assert tree_mask(q_offset=0, mask_function=sliding_window_causal_mask_function(2), local_size=2) is None  # no cache


def two_rows() -> AttentionContext:
    cache = TreeCache([(1, 4, 4)], 2, 9, torch.float32, torch.device("cpu"))
    cache.advance([3, 5])
    positions = torch.tensor([[3, 4, 4], [5, 6, 6]])
    mask = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]).bool().expand(2, -1, -1)
    return AttentionContext(Dense(), cache, cache.lengths, [3, 5], positions, 3, mask)


def test_unknown_and_absent_kernels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(
        InputError, match=r"target.kernel: expected one of auto, aten_flash, tree_flash, flash_attn, dense, got 'x'"
    ):
        choose_kernel("x", cpu)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"expected flash-attn to be installed for kernel=flash_attn.*\[gpu\]"):
        choose_kernel("flash_attn", cpu)


@pytest.mark.parametrize(
    ("installed", "got"),
    [(None, "got no triton;"), ("3.5.1", "got triton 3.5.1;"), ("2.0", "got triton 2.0;")],
    ids=str,
)
def test_a_missing_or_old_triton_is_named(monkeypatch: pytest.MonkeyPatch, installed: str | None, got: str) -> None:
    monkeypatch.setattr(tree_flash, "installed_version", lambda: installed)
    with pytest.raises(InputError, match=r"expected triton 3\.6 or newer for kernel=tree_flash, " + got) as error:
        choose_kernel("tree_flash", torch.device("cpu"))
    assert str(error.value).endswith('pip install -e ".[triton]", or use kernel=auto')
    assert registry.by_speed()[-1] == "dense"
    assert "tree_flash" not in registry.by_speed()


def test_on_cuda_the_tree_kernel_comes_first_and_a_failing_one_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU machine: both packages are there, and Triton finds no C compiler."""

    class Failing(TreeFlash):
        def __init__(self) -> None:
            pass

        def require_running(self, device: torch.device) -> None:
            raise InputError("target.kernel", expected="a Triton that works", got=f"none on {device}", fix="x")

    monkeypatch.setattr(tree_flash, "installed_version", lambda: "3.6.0")
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    assert registry.by_speed() == ["tree_flash", "flash_attn", "dense"]
    assert registry.slower("tree_flash") == ["flash_attn", "dense"]
    assert registry.slower("flash_attn") == ["dense"]
    assert registry.slower("aten_flash") == ["dense"]
    assert registry.slower("dense") == []
    monkeypatch.setitem(registry.KERNELS, "tree_flash", Failing)
    monkeypatch.setitem(registry.KERNELS, "flash_attn", Dense)
    with pytest.warns(UserWarning, match="got none on cuda.*trying the next kernel"):
        assert isinstance(choose_kernel("auto", torch.device("cuda")), Dense)


@pytest.fixture
def released_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released Python package over a stand-in for its CUDA module, which computes densely on the CPU."""
    if not FLASH_SOURCES.is_dir():
        pytest.skip(f"the Python sources of flash-attn are not in {FLASH_SOURCES} (make setup brings them)")
    stand_in = types.ModuleType("flash_attn_2_cuda")
    stand_in.fwd_kvcache = _fwd_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_2_cuda", stand_in)
    monkeypatch.syspath_prepend(str(FLASH_SOURCES))
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)


def _fwd_kvcache(q, k_cache, v_cache, k, v, seqlens, cos, sin, batch_idx, leftpad, table, alibi, out, scale, causal,
                 left, right, softcap, interleaved, splits):  # fmt: skip
    """Compute what flash-attn 2.8 computes on CUDA, for the arguments we pass; layout [batch seq heads dim]."""
    unused = (k, v, cos, sin, batch_idx, leftpad, table, alibi, out)
    assert all(x is None for x in unused)
    assert (left, right, softcap, splits) == (-1, -1, 0.0, 0)
    assert all(x.stride(-1) == 1 for x in (q, k_cache, v_cache))
    slots, new = k_cache.shape[1], q.shape[1]
    mask = torch.ones(q.shape[0], new, slots, dtype=torch.bool)
    if seqlens is not None:
        assert seqlens.dtype == torch.int32
        mask &= torch.arange(slots) < seqlens[:, None, None]
    if causal:
        mask &= torch.ones(new, slots, dtype=torch.bool).tril(slots - new)
    o, lse = masked_attention(q.transpose(1, 2), k_cache.transpose(1, 2), v_cache.transpose(1, 2), mask, scale)
    return o.transpose(1, 2).to(q.dtype), lse


@pytest.mark.usefixtures("released_flash_attn")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_our_flash_attn_calls_run_through_the_released_package() -> None:
    """Signatures and layout are held against the real Python code; only the CUDA kernel is replaced."""
    kernel = FlashAttn()
    context, query, keys, values = problem(LENGTHS)
    for ours, dense in zip(
        kernel.prefix(query, keys, values, context, 0.25),
        Dense().prefix(query, keys, values, context, 0.25),
        strict=True,
    ):
        torch.testing.assert_close(ours, dense, atol=TOLERANCE, rtol=0)
    keys, values = keys[:, :, :NEW], values[:, :, :NEW]
    for ours, dense in zip(
        kernel.causal(query, keys, values, 0.25), Dense().causal(query, keys, values, 0.25), strict=True
    ):
        torch.testing.assert_close(ours, dense, atol=TOLERANCE, rtol=0)
