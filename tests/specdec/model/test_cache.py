"""TreeCache: keeping a path moves what was computed, and nothing else."""

from __future__ import annotations

import psutil
import pytest
import torch

from specdec.errors import InputError
from specdec.model.attention import AttentionContext
from specdec.model.attention.dense import Dense
from specdec.model.cache import KEPT, ROOM, LentCaches, TreeCache

LAYERS = [(2, 3, 3), (2, 3, 5), (1, 4, 4)]  # layers may differ in heads and sizes


def open_block(cache: TreeCache, nodes: int) -> None:
    positions = cache.lengths[:, None] + torch.arange(nodes)
    cache.open_block(AttentionContext(Dense(), cache, cache.lengths, cache.host_lengths, positions, nodes, None))


def test_keep_moves_the_path_behind_the_prefix_and_forgets_the_rest() -> None:
    cache = TreeCache(LAYERS, 2, 12, torch.float32, torch.device("cpu"))
    cache.advance([3, 5])
    open_block(cache, 4)
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
    open_block(cache, 4)
    keys, _ = cache.update(torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3), 0)
    before = cache.layer(0)[0].clone()
    cache.keep(torch.tensor([[0, 1, 2]]), [3])
    assert torch.equal(cache.layer(0)[0], before)
    assert torch.equal(before[:, :, :3], keys[:, :, :3])


def test_a_layer_that_the_model_changes_is_handed_out_whole() -> None:
    cache = TreeCache(LAYERS, 1, 8, torch.float32, torch.device("cpu"), sources={0: 0, 1: 0})
    assert cache.hands_out
    assert [cache.stored(layer) is None for layer in (0, 1, 2, None)] == [False, False, True, True]
    assert cache.stored(1) is cache.layer(0)
    open_block(cache, 2)
    new = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 5)
    for storage, whole in zip(cache.layer(1), cache.update(*new, 1), strict=True):
        assert torch.equal(whole, storage)
    keys, _ = cache.update(torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 3), 0)
    assert keys.shape[2] == 2


def test_memory_is_allocated_once() -> None:
    cache = TreeCache(LAYERS, 1, 8, torch.float32, torch.device("cpu"))
    address = cache.layer(1)[1].data_ptr()
    for _ in range(3):
        open_block(cache, 2)
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


class Holder:
    """Stands for a drafter, a verifier or the baseline."""


def lent(windows: tuple[int, ...] = ()) -> LentCaches:
    return LentCaches(
        lambda batch, capacity: TreeCache(LAYERS, batch, capacity, torch.float32, torch.device("cpu")), windows
    )


def test_a_holder_gets_the_same_storage_again_and_nothing_of_what_it_held() -> None:
    caches, holder, other = lent(), Holder(), Holder()
    first = caches.lend(holder, 2, 10)
    assert first.capacity == ROOM
    first.advance([3, 5])
    for index in range(len(LAYERS)):
        for storage in first.layer(index):
            storage.fill_(torch.nan)
    assert caches.lend(other, 2, 10) is not first
    again = caches.lend(holder, 2, 200)
    assert again is first
    assert again.host_lengths == again.lengths.tolist() == [0, 0]
    assert not any(storage.any() for index in range(len(LAYERS)) for storage in again.layer(index))
    assert caches.lend(holder, 2, ROOM + 1).capacity == 2 * ROOM


def test_a_holder_keeps_the_caches_of_its_last_batch_sizes() -> None:
    caches, holder = lent(), Holder()
    full, last = caches.lend(holder, 8, 10), caches.lend(holder, 3, 10)
    assert caches.lend(holder, 8, 10) is full
    assert caches.lend(holder, 3, 10) is last
    caches.lend(holder, 5, 10)
    assert len(caches._lent) == KEPT


def test_what_a_holder_had_goes_to_the_next_one_when_it_is_gone() -> None:
    caches, holder = lent(), Holder()
    cache = caches.lend(holder, 1, 10)
    del holder
    assert caches.lend(Holder(), 1, 10) is cache


def test_a_cache_serves_only_texts_on_its_side_of_a_window() -> None:
    caches, holder = lent((300,)), Holder()
    short, long = caches.lend(holder, 1, 200), caches.lend(holder, 1, 400)
    assert short.capacity <= 300 < long.capacity
    assert caches.lend(holder, 1, 200).capacity <= 300


def test_lengths_come_back_after_a_look_at_others() -> None:
    cache = TreeCache(LAYERS, 2, 12, torch.float32, torch.device("cpu"))
    cache.advance([3, 5])
    with cache.at_lengths([1, 2]):
        assert cache.host_lengths == cache.lengths.tolist() == [1, 2]
    assert cache.host_lengths == cache.lengths.tolist() == [3, 5]
