"""Which texts a training step sees, and the tensors they make.

The order is addressed, not advanced: step s of a seed is the same texts whatever came before and however many processes
share them, so that a resumed run and a run on other hardware see what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.training.recipe import TrainBatch
from specdec.training.text.store import TextStore
from specdec.training.text.texts import Text


class Order:
    """Shuffled anew every epoch; a batch that reaches over an epoch's end goes on in the next."""

    def __init__(self, texts: Sequence[Text], batch_size: int, seed: int) -> None:
        self._texts, self._size, self._seed = texts, batch_size, seed

    def __getitem__(self, step: int) -> list[Text]:
        count, first = len(self._texts), step * self._size
        epochs = range(first // count, (first + self._size - 1) // count + 1)
        shuffled = {epoch: self.epoch(epoch) for epoch in epochs}
        return [shuffled[place // count][place % count] for place in range(first, first + self._size)]

    def epoch(self, number: int) -> list[Text]:
        """All texts in the order of an epoch."""
        count = len(self._texts)
        return [self._texts[i] for i in np.random.default_rng([self._seed, number]).permutation(count)]


def deal(texts: Sequence[Text], parts: int) -> list[list[Text]]:
    """A step's texts in equally many parts, neighbours in length together: little padding in each."""
    assert len(texts) % parts == 0
    by_length = sorted(texts, key=lambda text: (text.tokens, text.key, text.sample))
    size = len(texts) // parts
    return [by_length[i : i + size] for i in range(0, len(texts), size)]


class Ahead:
    """`make(n)` for n up to `end`, asked for one after the other: while one is used, a thread makes the next."""

    def __init__(self, make: Callable[[int], Any], end: int) -> None:
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1)
        self._made: tuple[int, Future[Any]] | None = None

    def __call__(self, number: int) -> Any:
        if self._made is None or self._made[0] != number:
            self._made = number, self._thread.submit(self._make, number)
        wanted = self._made[1]
        self._made = (number + 1, self._thread.submit(self._make, number + 1)) if number + 1 < self._end else None
        return wanted.result()


def make_batch(
    store: TextStore, texts: Sequence[Text], features: Sequence[str], longest: int, progress: float = 0.0
) -> TrainBatch:
    """Texts, cut to `longest` tokens and padded on the right, with their stored features in the 16 bit they are stored
    in; on the CPU. `move` widens them, where they are used."""
    lengths = [min(text.tokens, longest) for text in texts]
    rows = [torch.from_numpy(store.tokens(text)[:n]).long() for text, n in zip(texts, lengths, strict=True)]
    answers = []
    for text, n in zip(texts, lengths, strict=True):
        answer = torch.zeros(n, dtype=torch.bool)
        for begin, end in text.answers:
            answer[begin:end] = True
        answers.append(answer)

    def feature(name: str) -> Tensor:
        return _pad([store.feature(text, name)[:n] for text, n in zip(texts, lengths, strict=True)])

    valid = [torch.ones(n, dtype=torch.bool) for n in lengths]
    return TrainBatch(_pad(rows), _pad(answers), _pad(valid), {name: feature(name) for name in features}, progress)


def move(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """The batch on a device, its features in fp32."""

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    features = {name: to(values).float() for name, values in batch.features.items()}
    return TrainBatch(to(batch.tokens), to(batch.answer), to(batch.valid), features, batch.progress)


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)
