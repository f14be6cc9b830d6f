"""A suffix array over many texts, in a folder of memory-mapped files (REST, arXiv 2311.08252).

    corpus.json    the tokenizer it was built for, and the number of tokens
    tokens.npy     int32 ids of all texts, `SORTED` separators (-1) after each
    order.npy      int32, the positions of all tokens, sorted by the next `SORTED` tokens

A context is looked up by binary search; the positions it occurs at are neighbours in `order`, and so are those of each
continuation. Nothing is read but the pages that the search touches.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.durable import is_whole, replacing, seal, write_json

SORTED = 64  # tokens that the suffixes are sorted by: context and continuation together
CONTEXT = 16  # longest context that is looked up
SAMPLE = 256  # occurrences to look at, spread evenly, when a context is frequent
FOLLOWERS = 8  # followers that are returned, the most frequent ones
END = -1  # separator between texts; it never follows
REBUILD = "build it again: python -m experiments.build_corpus folder=... data=..."


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts whose contexts can be looked up.

    Args:
        tokens: ids of all texts, separators after each, [all].
        order: positions of all tokens but separators, sorted by the `SORTED` tokens from each on, [tokens].
    """

    tokens: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]]) -> Corpus:
        """Sort texts in memory.

        Raises:
            InputError: no texts.
        """
        gap = np.full(SORTED, END, dtype=np.int32)
        parts = [part for text in texts for part in (np.asarray(text, dtype=np.int32), gap)]
        if not parts:
            raise InputError(
                "data", expected="at least one text", got="none", fix="write some: experiments.self_distill"
            )
        tokens = np.concatenate(parts)
        return cls(tokens, sorted_suffixes(tokens))

    @classmethod
    def open(cls, folder: Path, tokenizer: str) -> Corpus:
        """Map the files that `write` has written.

        Args:
            folder: the folder.
            tokenizer: the target's tokenizer (`tokenizer_hash`).

        Raises:
            InputError: no such folder, a file cut short or changed, or texts of another tokenizer.
        """
        if not is_whole(folder):
            got = "one with files that are cut short or changed" if folder.is_dir() else "no such folder"
            raise InputError("drafter.corpus", expected=f"a whole corpus in {folder}", got=got, fix=REBUILD)
        about = read_json(folder / "corpus.json")
        if about["tokenizer"] != tokenizer:
            expected, got = "a corpus of the target's own tokenizer", f"{folder}, made with that of {about['target']}"
            raise InputError("drafter.corpus", expected=expected, got=got, fix=REBUILD)
        # the memory stays mapped; a plain view is read several times faster than a memmap
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in ("tokens", "order")))

    def write(self, folder: Path, tokenizer: str, target: str) -> None:
        """Write a folder; one that stands there is replaced once the new one is whole.

        Args:
            folder: the folder.
            tokenizer: the tokenizer that the texts were made with (`tokenizer_hash`).
            target: name of its model, for messages.
        """
        with replacing(folder) as unfinished:
            unfinished.mkdir()
            self.fill(unfinished, tokenizer, target)

    def fill(self, folder: Path, tokenizer: str, target: str) -> None:
        """Write the files into an empty folder. Arguments as in `write`."""
        np.save(folder / "tokens.npy", self.tokens)
        np.save(folder / "order.npy", self.order)
        write_json(folder / "corpus.json", {"target": target, "tokenizer": tokenizer, "tokens": len(self)})
        seal(folder)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.order)

    def longest(self, context: Sequence[int]) -> tuple[int, int, int]:
        """Return the length of the longest suffix of `context` that occurs, and its range [low, high) in `order`.

        A suffix occurs if every longer one does, so the length is found by bisection.
        """
        found, low, high = 0, 0, len(self.order)
        least, most = 1, min(CONTEXT, len(context))
        while least <= most:
            length = (least + most + 1) // 2
            begin, end = self._range(context[len(context) - length :])
            if begin < end:
                found, low, high, least = length, begin, end, length + 1
            else:
                most = length - 1
        return found, low, high

    def followers(self, depth: int, low: int, high: int) -> list[tuple[int, float]]:
        """Return the most frequent tokens at `depth` after the positions of a range, and the share of each.

        All positions of the range must agree in the tokens before `depth`. A frequent range is sampled, so shares are
        estimates there.
        """
        if depth >= SORTED:
            return []
        seen = self.tokens[self.order[low : high : max(1, (high - low) // SAMPLE)] + depth]
        found = Counter(seen[seen != END].tolist())
        return [(token, count / found.total()) for token, count in found.most_common(FOLLOWERS)]

    def narrow(self, token: int, depth: int, low: int, high: int) -> tuple[int, int]:
        """Return the part of a range whose positions have a token at a depth.

        Args:
            token: the token.
            depth: its distance from the positions; all of the range must agree in the tokens before it.
            low: begin of the range in `order`.
            high: its end.
        """
        at = self._token_at(depth)
        begin = bisect_left(range(len(self.order)), token, low, high, key=at)
        return begin, bisect_right(range(len(self.order)), token, begin, high, key=at)

    def _token_at(self, depth: int) -> Callable[[int], int]:
        token, position = self.tokens.item, self.order.item
        return lambda i: token(position(i) + depth)

    def _range(self, context: Sequence[int]) -> tuple[int, int]:
        """Return the range of positions that are followed by `context`."""
        low, high = 0, len(self.order)
        for depth, token in enumerate(context):
            low, high = self.narrow(token, depth, low, high)
            if low == high:
                break
        return low, high


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def sorted_suffixes(tokens: np.ndarray) -> np.ndarray:
    """Return the positions of all tokens but separators, sorted by the `SORTED` tokens from each on.

    Prefix doubling (Manber & Myers 1993), stopped at `SORTED` tokens: ranks by n tokens give ranks by 2n.
    """
    rank = tokens.astype(np.int64) + 1
    length = 1
    while length < SORTED:
        behind = np.zeros_like(rank)
        behind[:-length] = rank[length:]
        _, rank = np.unique(rank * (rank.max() + 1) + behind, return_inverse=True)
        length *= 2
    order = np.argsort(rank, kind="stable")
    return order[tokens[order] != END].astype(np.int32)
