"""A forward on kernel=tree_flash, compiled once for all node counts: what a capture on CUDA would hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from specdec.model.block import Block
from specdec.model.load import load_tiny
from specdec.trees.tree import TokenTree


class Graphs:
    """A backend that keeps the graphs that it gets, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward


@torch.inference_mode()
def test_one_compile_serves_all_buckets() -> None:
    target = load_tiny(device="cpu", kernel="tree_flash", runtime="stock")
    plain, compiled_cache = target.new_cache(1, 96), target.new_cache(1, 96)
    for cache in (plain, compiled_cache):
        target.prefill(cache, [[1, 2, 3]])
    found = Graphs()
    torch._dynamo.reset()

    def forward(tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> Any:
        return target._run_modules(compiled_cache, Block(tokens, positions, mask))

    compiled = torch.compile(forward, fullgraph=True, backend=aot_autograd(fw_compiler=found))
    for nodes in (2, 4, 8, 16, 64):
        tree = TokenTree.from_rows([range(nodes)], [[-1, *((i - 1) // 2 for i in range(1, nodes))]])
        tokens, positions, mask, _ = (x if x is None else x.clone() for x in Block.of_tree(plain, tree).tensors)
        for x in (tokens, positions, mask):
            torch._dynamo.mark_dynamic(x, 1)
        torch._dynamo.mark_dynamic(mask, 2)
        expected = target.forward_tree(plain, tree)
        logits, hidden = compiled(tokens, positions, mask)
        torch.testing.assert_close(logits, expected.logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(hidden, expected.hidden, atol=2e-5, rtol=1e-4)
    assert len(found.graphs) == 1
    names = [str(node.target) for node in found.graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("tree_flash" in name for name in names) == target.depth
    assert not any("scatter" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_write_operator_is_a_scatter(dtype: torch.dtype) -> None:
    from specdec.model import cache_write

    caches = [[torch.zeros(2, 2, 9, 4, dtype=dtype) for _ in range(2)] for _ in range(2)]
    new = [torch.randn(2, 2, 3, 4).to(dtype) for _ in range(2)]
    slots = torch.tensor([[2, 3, 4], [5, 6, 7]])[:, None, :, None]
    cache_write._operator(*caches[0], *new, slots)
    cache_write.write(*caches[1], *new, slots)
    for ours, theirs in zip(*caches, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours[0, :, 2:5], new[0 if ours is caches[0][0] else 1][0])
