"""A suffix array over many texts, in a folder of memory-mapped files (REST, arXiv 2311.08252).

    corpus.json    what it was built for: tokenizer, number of tokens
    tokens.npy     int32 ids of all texts, `SORTED` separators (-1) after each
    order.npy      int32, the positions of all tokens, sorted by the next `SORTED` tokens

A context is looked up by binary search; the positions it occurs at are neighbours in `order`, and so are those of each
continuation. Nothing is read but the pages that the search touches.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.durable import is_whole, replacing, seal, write_json

SORTED = 64  # tokens that the suffixes are sorted by: context and continuation together
CONTEXT = 16  # longest context that is looked up
SAMPLE = 256  # occurrences to look at, spread evenly, when a context is frequent
END = -1  # separator between texts; it never follows
REBUILD = "build it again: python -m experiments.build_corpus folder=... data=..."


class Corpus:
    """Look up contexts in a folder that `build` has written.

    Args:
        folder: the folder.
        tokenizer: the target's tokenizer (`tokenizer_hash`).

    Raises:
        InputError: no such folder, a file cut short or changed, or texts of another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: str) -> None:
        if not (folder / "corpus.json").is_file() or not is_whole(folder):
            got = "no such folder" if not folder.is_dir() else "a folder without one, or with files cut short or changed"
            raise InputError("drafter.corpus", expected=f"a corpus in {folder}", got=got, fix=REBUILD)
        about = read_json(folder / "corpus.json")
        if about["tokenizer"] != tokenizer:
            raise InputError(
                "drafter.corpus",
                expected="a corpus of the target's tokenizer",
                got=f"{folder}, whose tokens are those of {about['target']}",
                fix=REBUILD,
            )
        self.tokens: np.ndarray = np.load(folder / "tokens.npy", mmap_mode="r")
        self.order: np.ndarray = np.load(folder / "order.npy", mmap_mode="r")
        self.texts, self.size = int(about["texts"]), int(about["tokens"])

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

    def followers(self, depth: int, low: int, high: int) -> list[tuple[int, int, int, int]]:
        """Return (token, number of occurrences, low, high) for the tokens at `depth` after the positions of a range.

        All positions of the range must agree in the tokens before `depth`. A frequent range is sampled: tokens that are
        rare in it may be missing, and ends of ranges are found by bisection.
        """
        if depth >= SORTED:
            return []
        step = max(1, (high - low) // SAMPLE)
        seen = self.tokens[self.order[low:high:step] + depth]
        firsts = np.flatnonzero(np.r_[True, seen[1:] != seen[:-1]]) if len(seen) else seen
        found = []
        for token in seen[firsts].tolist():
            if token == END:
                continue
            key = self._token_at(depth)
            begin = bisect_left(range(len(self.order)), token, low, high, key=key)
            end = bisect_right(range(len(self.order)), token, begin, high, key=key)
            found.append((token, end - begin, begin, end))
        return found

    def _token_at(self, depth: int) -> Any:
        return lambda i: int(self.tokens[self.order[i] + depth])

    def _range(self, context: Sequence[int]) -> tuple[int, int]:
        """Return the range of positions that are followed by `context`."""
        low, high = 0, len(self.order)
        for depth, token in enumerate(context):
            low = bisect_left(range(len(self.order)), token, low, high, key=self._token_at(depth))
            high = bisect_right(range(len(self.order)), token, low, high, key=self._token_at(depth))
            if low == high:
                break
        return low, high


def build(folder: Path, texts: Iterable[Sequence[int]], tokenizer: str, target: str) -> int:
    """Write a corpus, and return its number of tokens.

    Args:
        folder: where to write it; a corpus that stands there is replaced once the new one is whole.
        texts: token ids of each text.
        tokenizer: the tokenizer they were made with (`tokenizer_hash`).
        target: its model's name, for messages.

    Raises:
        InputError: no texts.
    """
    parts: list[np.ndarray] = []
    for text in texts:
        parts += [np.asarray(text, dtype=np.int32), np.full(SORTED, END, dtype=np.int32)]
    if not parts:
        raise InputError("data", expected="at least one text", got="none", fix="write some: experiments.self_distill")
    tokens = np.concatenate(parts)
    order = sorted_suffixes(tokens)
    about = {"target": target, "tokenizer": tokenizer, "texts": len(parts) // 2, "tokens": len(order)}
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        np.save(unfinished / "tokens.npy", tokens)
        np.save(unfinished / "order.npy", order)
        write_json(unfinished / "corpus.json", about)
        seal(unfinished)
    return len(order)


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
