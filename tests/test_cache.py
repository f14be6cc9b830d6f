"""TreeCache: keeping a path moves what was computed, and nothing else."""

from __future__ import annotations

import psutil
import pytest
import torch

from specdec.cache import TreeCache
from specdec.errors import InputError

LAYERS = [(2, 3, 3), (2, 3, 5), (1, 4, 4)]  # layers may differ in heads and sizes


def test_keep_moves_the_path_behind_the_prefix_and_forgets_the_rest() -> None:
    cache = TreeCache(LAYERS, 2, 12, torch.float32, torch.device("cpu"))
    cache.advance([3, 5])
    cache.open_block(0, 4)
    fresh = [(torch.randn(2, h, 4, k), torch.randn(2, h, 4, v)) for h, k, v in LAYERS]
    for index, (keys, values) in enumerate(fresh):
        cache.update(keys, values, index)
    cache.keep(torch.tensor([[0, 2, 3], [0, 1, -1]]), [3, 2])
    assert cache.host_lengths == cache.lengths.tolist() == [6, 7]
    for index, pair in enumerate(fresh):
        for stored, new in zip(cache.layer(index), pair, strict=True):
            assert torch.equal(stored[0, :, 3:6], new[0][:, [0, 2, 3]])
            assert torch.equal(stored[1, :, 5:7], new[1][:, [0, 1]])


def test_a_chain_is_kept_where_it_stands() -> None:
    cache = TreeCache(LAYERS[:1], 1, 8, torch.float32, torch.device("cpu"))
    cache.open_block(0, 4)
    keys, _ = cache.update(torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3), 0)
    before = cache.layer(0)[0].clone()
    cache.keep(torch.tensor([[0, 1, 2]]), [3])
    assert torch.equal(cache.layer(0)[0], before)
    assert torch.equal(before[:, :, :3], keys[:, :, :3])


def test_memory_is_allocated_once() -> None:
    cache = TreeCache(LAYERS, 1, 8, torch.float32, torch.device("cpu"))
    address = cache.layer(1)[1].data_ptr()
    for _ in range(3):
        cache.open_block(0, 2)
        cache.update(torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 5), 1)
        cache.keep(torch.tensor([[0, 1]]), [2])
    assert cache.layer(1)[1].data_ptr() == address


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(InputError) as error:
        TreeCache([(8, 64, 64)] * 30, 16, 4096, torch.float32, torch.device("cpu"))
    assert str(error.value) == (
        "KV cache: expected at most 1 MiB (what is free on cpu), got 7,680 MiB for batch 16 x 4096 tokens; "
        "lower generation.batch_size or generation.max_new_tokens"
    )
