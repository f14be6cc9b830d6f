"""Tree attention on every supported architecture, against the stock model run on each path by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdec.decoding.protocols import Scores
from specdec.decoding.sampling import SamplingParams
from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.target import PREFILL_CHUNK, TargetModel
from specdec.trees.tree import TokenTree
from tests.support.families import FAMILIES, VOCAB, build
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

TOLERANCE = 2e-5  # fp32 logits of order ten, through a few random layers
SAMPLING = SamplingParams(temperature=1.0)
CAPACITY = 64


@pytest.fixture(scope="module", params=FAMILIES)
def target(request: pytest.FixtureRequest) -> TargetModel:
    return TargetModel(build(request.param), name=request.param)


def rows(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]


def tree_over(prompts: list[list[int]]) -> TokenTree:
    """A different branching tree for every row, the last one smaller."""
    shapes = [[-1, 0, 0, 1, 1, 2, 3], [-1, 0, 1, 2, 3, 4, 0], [-1, 0, 0, 2]]
    tokens = [[row[-1], *(11 * i + r for i in range(1, len(shapes[r])))] for r, row in enumerate(prompts)]
    return TokenTree.from_rows(tokens, shapes[: len(prompts)])


def both(target: TargetModel, prompts: list[list[int]]) -> tuple[TreeAttention, PathByPath]:
    verifiers = TreeAttention(target), PathByPath(target)
    for verifier in verifiers:
        verifier.prefill([row[:-1] for row in prompts], SAMPLING, CAPACITY)
    return verifiers


def assert_same(ours: Scores, theirs: Scores, where: Tensor) -> None:
    for a, b in ((ours.probs, theirs.probs), (ours.hidden, theirs.hidden)):
        torch.testing.assert_close(a[where], b[where], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[9], [4, 13, 2]], ids=["batch 1", "ragged batch 3"])
def test_a_tree_scores_as_its_paths_do(target: TargetModel, lengths: list[int]) -> None:
    prompts = rows(lengths)
    ours, oracle = both(target, prompts)
    tree = tree_over(prompts)
    assert_same(ours.verify(tree, prompts), oracle.verify(tree, prompts), tree.valid)


@pytest.mark.parametrize("lengths", [[9], [4, 13, 2]], ids=["batch 1", "ragged batch 3"])
def test_keeping_a_path_equals_reading_the_text_again(target: TargetModel, lengths: list[int]) -> None:
    prompts = rows(lengths)
    ours, oracle = both(target, prompts)
    tree = tree_over(prompts)
    ours.verify(tree, prompts)
    paths = [[0, 1, 4], [0, 1, 2, 3], [0, 2]][: len(prompts)]
    padded = torch.tensor([path + [-1] * (4 - len(path)) for path in paths])
    ours.commit(padded, [len(path) for path in paths])
    grown = [
        row + [int(tree.tokens[r, node]) for node in path[1:]] + [5]
        for r, (row, path) in enumerate(zip(prompts, paths, strict=True))
    ]
    again = tree_over(grown)
    assert_same(ours.verify(again, grown), oracle.verify(again, grown), again.valid)


@pytest.mark.parametrize("lengths", [[9], [4, 13, 2]], ids=["batch 1", "ragged batch 3"])
def test_prefill_equals_the_stock_model(target: TargetModel, lengths: list[int]) -> None:
    prompts = rows(lengths)
    ours = TreeAttention(target).prefill(prompts, SAMPLING, CAPACITY)
    theirs = PathByPath(target).prefill(prompts, SAMPLING, CAPACITY)
    torch.testing.assert_close(ours.probs, theirs.probs, atol=TOLERANCE, rtol=1e-4)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    torch.testing.assert_close(ours.hidden[real], theirs.hidden[real], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["aten_flash", "dense"])
def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    assert PREFILL_CHUNK >= 64  # or prompts of ordinary length would be slow
    monkeypatch.setattr("specdec.model.target.PREFILL_CHUNK", 5)
    target = TargetModel(build("llama"), name="llama", kernel=kernel)
    prompts = rows([17, 3, 11])
    ours = TreeAttention(target).prefill(prompts, SAMPLING, CAPACITY)
    theirs = PathByPath(target).prefill(prompts, SAMPLING, CAPACITY)
    torch.testing.assert_close(ours.probs, theirs.probs, atol=TOLERANCE, rtol=1e-4)


def test_growing_a_tree_level_by_level_equals_one_forward() -> None:
    """A draft model's forwards: the block's first nodes are cached by earlier ones."""
    target = TargetModel(build("llama"), name="llama")
    prompts = rows([4, 13, 2])
    tree = tree_over(prompts[:1] * 3)
    cache = target.new_cache(3, CAPACITY)
    target.prefill(cache, prompts)
    whole = target.forward_tree(cache, tree).logits
    positions = cache.lengths[:, None] + tree.depth
    parts = []
    for start, end in ((0, 1), (1, 3), (3, 7)):
        block = Block(tree.tokens[:, start:end], positions[:, :end], tree.ancestor_mask[:, start:end, :end])
        parts.append(target.forward(cache, block).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=TOLERANCE, rtol=1e-4)


def test_two_models_of_one_config_keep_their_own_attention() -> None:
    model = build("llama")
    TargetModel(model, name="ours")
    other = build("llama")
    assert other.config._attn_implementation != model.config._attn_implementation


def test_the_stock_model_comes_back_after_use(tiny: TargetModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with tiny.stock() as model:
        first = model(ids).logits
    cache = tiny.new_cache(1, 8)
    torch.testing.assert_close(tiny.prefill(cache, ids.tolist()).logits[:, 0], first[:, -1], atol=TOLERANCE, rtol=1e-4)
    with tiny.stock() as model:
        assert torch.equal(model(ids).logits, first)


def test_models_without_the_attention_interface_are_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(InputError, match="target: expected a causal LM whose attention goes through"):
        TargetModel(model, name="bloom")
