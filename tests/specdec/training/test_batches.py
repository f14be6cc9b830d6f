"""Which texts a step sees, and the tensors they make."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.batches import Ahead, Order, deal, make_batch, move
from specdec.training.schedule import Schedule
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import HIDDEN, Origin, Text


def texts(count: int) -> list[Text]:
    return [Text(f"{i:016x}", 0, str(i), "c", 0.0, 0, 3 + i % 7, [[1, 2]]) for i in range(count)]


def test_every_epoch_is_all_texts_once_in_an_order_of_its_own() -> None:
    some = texts(10)
    order = Order(some, 4, seed=0)
    stream = [text.id for step in range(5) for text in order[step]]  # two epochs, the third batch reaches into both
    assert sorted(stream[:10]) == sorted(stream[10:]) == sorted(text.id for text in some)
    assert stream[:10] != stream[10:]
    assert Order(some, 4, seed=0)[3] == order[3]
    assert Order(some, 4, seed=1)[3] != order[3]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert sorted(Counter(text.id for text in Order(texts(3), 7, seed=0)[0]).values()) == [2, 2, 3]


def test_dealing_keeps_neighbours_in_length_together() -> None:
    some = texts(12)
    parts = deal(some, 3)
    assert sorted(text.id for part in parts for text in part) == sorted(text.id for text in some)
    assert [len(part) for part in parts] == [4, 4, 4]
    assert max(t.tokens for t in parts[0]) <= min(t.tokens for t in parts[1])


def test_a_batch_marks_answers_padding_and_features(tmp_path: Path, tiny: TargetModel) -> None:
    rows = [[9, 8, 7, 6, 5, 4], [1, 2, 3]]
    answers = [[[1, 2], [4, 6]], [[2, 3]]]
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        for i, (ids, spans) in enumerate(zip(rows, answers, strict=True)):
            hidden = torch.arange(len(ids), dtype=torch.float32)[:, None].expand(-1, 64) + 10 * i
            shard.append(Text(f"{i:016x}", 0, str(i), "c", 0.0, shard.end, len(ids), spans), ids, {HIDDEN: hidden})
    store = TextStore(tmp_path)
    batch = move(make_batch(store, store.texts, [HIDDEN], longest=5, progress=0.25), torch.device("cpu"))
    assert batch.tokens.tolist() == [[9, 8, 7, 6, 5], [1, 2, 3, 0, 0]]
    assert batch.answer.int().tolist() == [[0, 1, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert batch.valid.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.features[HIDDEN].dtype is torch.float32
    assert batch.features[HIDDEN][..., 0].tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 0, 0]]
    assert batch.progress == 0.25


def test_batches_are_made_one_ahead_and_never_beyond_the_end() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * 10

    ahead = Ahead(make, 4)
    assert [ahead(n) for n in range(4)] == [0, 10, 20, 30]
    assert made == [0, 1, 2, 3]
    assert ahead(2) == 20  # not the one that was expected
    assert ahead(3) == 30
    with pytest.raises(ZeroDivisionError):
        Ahead(lambda number: 1 // (1 - number), 2)(1)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    schedule = Schedule(learning_rate=1.0, warmup=0.1, final=0.2)
    rates = [schedule.rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.6)  # half way down the cosine, between 1 and 0.2
    assert rates[100] == pytest.approx(0.2)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"training.warmup: expected a share in \[0, 1\), got 1.5"):
        Schedule(warmup=1.5)
