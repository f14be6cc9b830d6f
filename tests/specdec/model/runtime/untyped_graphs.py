"""The needs of a CUDA graph, shown on a CPU: a verify forward is one graph without a break, it reads nothing on the
host that changes from step to step, and its memory stays where it is. The stand-in for a captured graph is
`torch.compile(fullgraph=True)`, forbidden to compile again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from drafters.draft_model.drafter import DraftModel
from drafters.early_exit import EarlyExit
from drafters.ngram import Ngram
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import Drafter
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.attention.dense import Dense
from specdec.model.block import Block
from specdec.model.load import load_tiny
from specdec.model.runtime.graphs import CapturedForwards
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.conftest import tiny_draft
from tests.specdec.model.test_target import rows, tree_over
from tests.support.families import build
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention


class Captures:
    """A stand-in for CUDA's capture that counts, and compiles at most once."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, forward: FunctionType) -> tuple[Callable[[], Any], tuple[Tensor, ...]]:
        code = forward.__code__.replace()  # Dynamo keeps what it compiles by code object: one for each capture
        own = FunctionType(code, forward.__globals__, closure=forward.__closure__)
        compiled = torch.compile(own, fullgraph=True, backend="eager", dynamic=False)
        outputs = tuple(tensor.clone() for tensor in compiled())
        self.made += 1

        def replay() -> None:
            with torch.compiler.set_stance("fail_on_recompile"):
                for static, tensor in zip(outputs, compiled(), strict=True):
                    static.copy_(tensor)

        return replay, outputs


def captured(target: TargetModel) -> Captures:
    captures = Captures()
    target.graphs = CapturedForwards(target._run_modules, captures)
    return captures


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "gpt_neox", "gpt2", "mixtral"])
@torch.inference_mode()
def test_a_verify_forward_is_one_graph_that_replays_at_other_lengths(family: str) -> None:
    target = TargetModel(build(family), name=family, kernel="dense", runtime="stock")
    prompts = rows([9, 4, 2])
    tree = tree_over(prompts)
    expected = []
    cache = target.new_cache(3, 64)
    target.prefill(cache, prompts)
    for _ in range(3):
        expected.append(target.forward_tree(cache, tree).logits)
        cache.advance([1, 2, 1])
    captures = captured(target)
    cache = target.new_cache(3, 64)
    target.prefill(cache, prompts)
    for logits in expected:
        torch.testing.assert_close(target.forward_tree(cache, tree).logits, logits, atol=2e-5, rtol=1e-4)
        cache.advance([1, 2, 1])
    assert captures.made == 1


@pytest.mark.parametrize(("kind", "temperature"), [("ngram", 0.0), ("draft_model", 1.0), ("early_exit", 0.0)])
def test_generation_with_captured_forwards_gives_the_same_text(kind: str, temperature: float) -> None:
    """Target and draft model captured, through many steps and two batches: few captures, no other text."""
    sampling, stop = SamplingParams(temperature=temperature), StopRule(14)
    texts, addresses = [], set()
    for graphs in (False, True):
        target = load_tiny(device="cpu", kernel="dense", runtime="stock")
        draft = tiny_draft()
        draft.fused, draft.kernel = None, Dense()
        drafters = {
            "ngram": Ngram(3, 1, 5, 2, 10),
            "draft_model": DraftModel(draft, [2, 1]),
            "early_exit": EarlyExit(1),
        }
        drafter: Drafter = drafters[kind]
        captures = [captured(model) for model in (target, draft)] if graphs else []
        verifier = TreeAttention(target)
        for prompts in ([[1, 2, 3, 1, 2], [7] * 9], [[5, 6, 5, 6, 5], [8, 9]]):
            texts.append(speculative(prompts, drafter, verifier, Exact(), sampling, stop, [[1], [2]]).texts)
            assert verifier._cache is not None
            addresses.add((graphs, *(tensor.data_ptr() for tensor in verifier._cache.layer(0))))
            texts.append(autoregressive(prompts, target, sampling, stop, [[1], [2]]).texts)
    assert texts[:4] == texts[4:]
    assert len(addresses) == 2  # one storage for both batches, with graphs and without
    assert all(capture.made <= 24 for capture in captures)


def test_graphs_go_with_their_cache() -> None:
    target = load_tiny(device="cpu", kernel="dense", runtime="stock")
    graphs = CapturedForwards(target._run_modules, lambda forward: (lambda: None, forward()))
    target.graphs = graphs
    cache = target.new_cache(1, 8)
    target.prefill(cache, [[1, 2]])
    with torch.inference_mode():
        target.forward(cache, Block.chain(cache, torch.tensor([[3]])))
    assert len(graphs._replays) == 1
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    assert len(graphs._replays) == 0


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    def waits(_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    target = load_tiny(device="cpu", kernel="dense", runtime="stock")
    target.graphs = CapturedForwards(target._run_modules, waits)
    cache = target.new_cache(1, 8)
    target.prefill(cache, [[1, 2]])
    with pytest.warns(
        UserWarning, match="^1 nodes run without a captured graph: operation not permitted when stream is capturing$"
    ):
        first = target.forward(cache, Block.chain(cache, torch.tensor([[3]])))
    assert torch.equal(first.logits, target.forward(cache, Block.chain(cache, torch.tensor([[3]]))).logits)
    target.graphs.capture = lambda forward: (lambda: None, forward())  # another shape may be possible
    target.forward(cache, Block.chain(cache, torch.tensor([[3, 4]])))
    assert len(target.graphs._replays[cache]) == 1


def test_too_little_memory_for_a_graph_is_passed_on() -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")

    target = load_tiny(device="cpu", kernel="dense", runtime="stock")
    target.graphs = CapturedForwards(target._run_modules, full)
    cache = target.new_cache(1, 8)
    target.prefill(cache, [[1, 2]])
    with pytest.raises(
        InputError, match=r"a captured graph of 2 nodes in 1 rows, got CUDA out of memory.*runtime=stock"
    ):
        target.forward(cache, Block.chain(cache, torch.tensor([[3, 4]])))


@torch.inference_mode()
def test_few_captures_serve_trees_of_all_sizes() -> None:
    """Trees of 1 to 20 nodes, falling and rising: the same scores as uncaptured, and one capture per bucket."""
    plain = load_tiny(device="cpu", kernel="dense", runtime="stock")
    target = load_tiny(device="cpu", kernel="dense", runtime="stock")
    captures = captured(target)
    caches = [model.new_cache(2, 96) for model in (plain, target)]
    for model, cache in zip((plain, target), caches, strict=True):
        model.prefill(cache, [[1, 2, 3], [4]])
    for nodes in [*range(20, 0, -1), *range(1, 21)]:
        tree = TokenTree.from_rows([range(nodes)] * 2, [[-1, *((i * 7) % i for i in range(1, nodes))]] * 2)
        ours, expected = (
            model.forward_tree(c, tree) for model, c in zip((target, plain), (caches[1], caches[0]), strict=True)
        )
        torch.testing.assert_close(ours.logits, expected.logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.hidden, expected.hidden, atol=2e-5, rtol=1e-4)
    assert captures.made == 6  # 1, 2, 4, 8, 16, 32


@torch.inference_mode()
def test_a_block_whose_padding_has_no_room_runs_uncaptured() -> None:
    target = load_tiny(device="cpu", kernel="dense", runtime="stock")
    captures = captured(target)
    cache = target.new_cache(1, 8)
    target.prefill(cache, [[1, 2, 3]])
    chain = Block.chain(cache, torch.tensor([[3, 4, 5, 6, 7]]))
    assert target.forward(cache, chain).logits.shape[1] == 5
    assert captures.made == 0
