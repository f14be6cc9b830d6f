"""Tests that need a CUDA device; skipped, with the reason, elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from drafters.ngram import Ngram
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.attention.context import AttentionContext
from specdec.model.attention.dense import Dense, masked_attention
from specdec.model.attention.tree_flash import TreeFlash, lacking
from specdec.model.cache import TreeCache
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.specdec.model.test_target import CAPACITY, SAMPLING, rows, tree_over
from tests.support.families import build
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
needs_flash = pytest.mark.skipif(find_spec("flash_attn") is None, reason="flash-attn is not installed")
BF16_TOLERANCE = 2e-2  # one bf16 rounding of values of order one, and a softmax


@pytest.mark.skipif(bool(lacking()), reason=f"{lacking() or 'a'}: kernel=tree_flash needs 3.6 or newer")
@pytest.mark.parametrize("merge_in_launch", [True, False])
@pytest.mark.parametrize("nodes", [1, 8, 70])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_tree_kernel_equals_the_dense_reference(dtype: torch.dtype, nodes: int, merge_in_launch: bool) -> None:
    """Many times over, with many shares: a race of their merge would show as another result."""
    torch.manual_seed(0)
    cuda = torch.device("cuda")
    cache = TreeCache([(2, 64, 64)], 3, 8192, dtype, cuda)
    keys, values = (storage.normal_() for storage in cache.layer(0))
    cache.advance([7, 8000, 131])
    tree = TokenTree.from_rows([range(nodes)] * 3, [[-1, *((i - 1) // 2 for i in range(1, nodes))]] * 3, cuda)
    query = torch.randn(3, 6, nodes, 64, dtype=dtype, device=cuda)
    positions = cache.lengths[:, None] + tree.depth
    context = AttentionContext(
        Dense(), cache, cache.lengths, cache.host_lengths, positions, nodes, tree.ancestor_mask.clone()
    )
    expected, _ = masked_attention(query, keys, values, context.visible(), 0.125)
    kernel = TreeFlash(merge_in_launch)
    for _ in range(100):
        ours = kernel.attend(query, keys, values, context, 0.125)
        assert ours is not None
        torch.testing.assert_close(ours.float(), expected, atol=BF16_TOLERANCE, rtol=BF16_TOLERANCE)


@needs_flash
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["prefix", "causal"])
def test_flash_attn_equals_the_dense_reference(dtype: torch.dtype, part: str) -> None:
    from specdec.model.attention.flash_attn import FlashAttn

    torch.manual_seed(0)
    cuda = torch.device("cuda")
    cache = TreeCache([(2, 64, 64)], 3, 512, dtype, cuda)
    keys, values = cache.layer(0)
    keys.normal_()
    values.normal_()
    cache.advance([7, 500, 131])
    query = torch.randn(3, 6, 9, 64, dtype=dtype, device=cuda)
    context = AttentionContext(
        Dense(), cache, cache.lengths, cache.host_lengths, torch.zeros(3, 9, device=cuda).long(), 9, None
    )
    results = []
    for kernel in (FlashAttn(), Dense()):
        if part == "prefix":
            results.append(kernel.prefix(query, keys, values, context, 0.125))
        else:
            results.append(kernel.causal(query, keys[:, :, :9], values[:, :, :9], 0.125))
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), dense.float(), atol=BF16_TOLERANCE, rtol=BF16_TOLERANCE)


@needs_flash
def test_a_tree_scores_as_its_paths_do_in_bf16() -> None:
    target = TargetModel(build("llama").to("cuda", torch.bfloat16), name="llama", kernel="flash_attn")
    prompts = rows([4, 13, 2])
    tree = tree_over(prompts)
    tree = type(tree)(tree.tokens.cuda(), tree.parents.cuda())
    scores = []
    for verifier in (TreeAttention(target), PathByPath(target)):
        verifier.prefill([row[:-1] for row in prompts], SAMPLING, CAPACITY)
        scores.append(verifier.verify(tree, prompts).probs[tree.valid])
    torch.testing.assert_close(*scores, atol=BF16_TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["ngram", "draft_model"])
def test_greedy_text_on_the_gpu_is_the_targets_own(kind: str) -> None:
    target = load_tiny(device="cuda")
    drafter: Drafter = Ngram(3, 1, 5, 2, 10) if kind == "ngram" else DraftModel(load_tiny(device="cuda"), [2, 1])
    assert target.tokenizer is not None
    prompts = [target.tokenizer.encode(text) for text in ("abcabcabc", "x")]
    sampling, stop, seeds = SamplingParams(), StopRule(24, target.eos), [[0], [1]]
    done = speculative(prompts, drafter, TreeAttention(target), Exact(), sampling, stop, seeds)
    assert done.texts == autoregressive(prompts, target, sampling, stop, seeds).texts
    assert all(set(step.ms) == {"draft", "verify", "accept", "commit"} for step in done.steps)


@pytest.mark.parametrize("kernel", ["dense", pytest.param("flash_attn", marks=needs_flash)])
@torch.inference_mode()
def test_captured_forwards_equal_the_modules_at_every_length(kernel: str) -> None:
    """Captured at one length, replayed at others; a second batch in the same cache replays what the first captured."""
    dtype = torch.float32 if kernel == "dense" else torch.bfloat16
    target = TargetModel(build("llama").to("cuda", dtype), name="llama", kernel=kernel)
    graphs = target.graphs
    assert graphs is not None
    prompts = rows([9, 4, 2])
    tree = tree_over(prompts)
    tree = type(tree)(tree.tokens.cuda(), tree.parents.cuda())
    cache = target.new_cache(3, CAPACITY)
    for _ in range(2):
        cache.crop([0, 0, 0])
        target.prefill(cache, prompts)
        for counts in ([1, 2, 1], [3, 1, 2]):
            replayed = target.forward_tree(cache, tree).logits[tree.valid].clone()
            target.graphs = None
            plain = target.forward_tree(cache, tree).logits[tree.valid]
            target.graphs = graphs
            torch.testing.assert_close(replayed, plain, atol=BF16_TOLERANCE if kernel != "dense" else 1e-5, rtol=1e-4)
            cache.advance(counts)
    assert len(graphs._replays[cache]) == 1
