"""Choose the texts of each training step, and build the batches.

The texts of a step depend on the seed and the step's number only, not on earlier steps or the number of processes. So a
resumed run, or a run on other hardware, reads the same texts as an uninterrupted one.
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
    """Order of the texts: shuffled anew every epoch. A batch may continue from one epoch into the next.

    `order[step]` is the list of texts of a step.
    """

    def __init__(self, texts: Sequence[Text], batch_size: int, seed: int) -> None:
        self._texts, self._size, self._seed = texts, batch_size, seed

    def __getitem__(self, step: int) -> list[Text]:
        count, first = len(self._texts), step * self._size
        epochs = range(first // count, (first + self._size - 1) // count + 1)
        shuffled = {epoch: self.epoch(epoch) for epoch in epochs}
        return [shuffled[place // count][place % count] for place in range(first, first + self._size)]

    def epoch(self, number: int) -> list[Text]:
        """Return all texts in the order of an epoch."""
        count = len(self._texts)
        return [self._texts[i] for i in np.random.default_rng([self._seed, number]).permutation(count)]


def deal(texts: Sequence[Text], parts: int) -> list[list[Text]]:
    """Split a step's texts into `parts` equal parts of texts with similar lengths, so that there is little padding."""
    assert len(texts) % parts == 0
    by_length = sorted(texts, key=lambda text: (text.tokens, text.key, text.sample))
    size = len(texts) // parts
    return [by_length[i : i + size] for i in range(0, len(texts), size)]


class Ahead:
    """Prefetch: while `make(n)` is in use, a thread runs `make(n + 1)`, for n + 1 < `end`."""

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
    """Return a batch on the CPU: texts cut to `longest` tokens and padded on the right.

    Features keep the 16 bits in which they are stored; `move` converts them to fp32.

    Args:
        store: the text folder.
        texts: texts of the batch.
        features: names of stored features to include.
        longest: largest number of tokens per text.
        progress: as in `TrainBatch`.
    """
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
    """Return the batch on a device, with features in fp32."""

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    features = {name: to(values).float() for name, values in batch.features.items()}
    return TrainBatch(to(batch.tokens), to(batch.answer), to(batch.valid), features, batch.progress)


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)
