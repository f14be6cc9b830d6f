"""A folder of the target's own text: token ids, which of them are answers, and hidden states, in memory-mapped files.

    index.json        whose text it is and what the files hold
    shard-0.jsonl     one line per finished sequence: where it stands in the shard's data files
    shard-0.tokens    int32 ids, one sequence after the other
    shard-0.hidden    one 16-bit row per token; any other feature likewise ("layer:8" in shard-0.layer-8)
    shard-0.*.sums    a checksum for each sequence in a data file (`checksums.py`)

One process writes one shard (`shard.py`), readers see all. A sequence is written data first, then its line: the line is
the commit. What a killed writer left behind the last whole line is cut off when the shard is opened for writing again.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.training.text.checksums import SUMS, read_sums, same
from specdec.training.text.index import committed, read_origin
from specdec.training.text.texts import FEATURE_BYTES, TOKEN_BYTES, Text, file_suffix, is_validation


class TextStore:
    """What a folder holds, for reading.

    Raises:
        InputError: no such folder, one of another format, a line that cannot be read, a torn data file. Reading a
            sequence raises it if its bytes are not those that were written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sums: dict[Path, dict[int, int]] = {}
        self.origin = read_origin(folder)
        self.texts = committed(folder)
        for last in {text.shard: text for text in self.texts}.values():
            file, needed = self._file(last, "tokens"), TOKEN_BYTES * (last.start + last.tokens)
            size = file.stat().st_size if file.exists() else 0
            if size < needed:
                raise InputError(
                    str(file),
                    expected=f"{needed:,} bytes, as its sequences say",
                    got=f"{size:,} (a torn shard)",
                    fix="run experiments.self_distill on the folder again: it cuts off what is torn",
                )

    @cached_property
    def training(self) -> list[Text]:
        """The texts to learn from, in the order of the folder."""
        return [text for text in self.texts if text.key not in self._held_out]

    @cached_property
    def validation(self) -> list[Text]:
        """The others, in the order of their prompts' hashes."""
        held_out = (text for text in self.texts if text.key in self._held_out)
        return sorted(held_out, key=lambda text: (text.key, text.sample))

    @cached_property
    def _held_out(self) -> set[str]:
        """Prompts by whose answers a drafter is judged: those whose hash says so; if it says so of none or of all, the
        one with the lowest hash."""
        keys = {text.key for text in self.texts}
        chosen = {key for key in keys if is_validation(key)}
        return chosen if keys and 0 < len(chosen) < len(keys) else set(sorted(keys)[:1])

    def tokens(self, text: Text) -> Int[np.ndarray, " seq"]:
        """A sequence's ids."""
        fix = (
            "run experiments.self_distill on the folder again: it leaves the sequence out, and answers its prompt again"
        )
        return self._read(text, "tokens", np.dtype("<i4"), (), fix)

    def feature(self, text: Text, name: str) -> Float[Tensor, "seq dim"]:
        """A sequence's features, in 16 bit, read from disk and not kept in memory.

        Raises:
            InputError: they are not in the folder.
        """
        self.require(text, name)
        fix = f"delete the file and run experiments.self_distill on the folder with features=[{name}]"
        rows = self._read(text, file_suffix(name), np.dtype("<u2"), (self.origin.dim,), fix)
        return torch.from_numpy(rows).view(self.origin.feature_dtype)

    def require(self, text: Text, name: str) -> None:
        """Raises InputError when a sequence's features are not in the folder."""
        if not self.has(text, name):
            raise InputError(
                str(self.folder),
                expected=f"the feature {name!r} of every sequence",
                got=f"none for {text.id!r}",
                fix=f"run experiments.self_distill on the folder with features=[{name}]",
            )

    def has(self, text: Text, name: str) -> bool:
        """Whether a sequence's features are stored."""
        file = self._file(text, file_suffix(name))
        return file.exists() and file.stat().st_size >= FEATURE_BYTES * self.origin.dim * (text.start + text.tokens)

    def frequencies(self) -> Int[Tensor, " vocab"]:
        """How often each token stands in the answers of the training split."""
        counts = np.zeros(self.origin.vocab_size, dtype=np.int64)
        for text in self.training:
            ids = self.tokens(text)
            for begin, end in text.answers:
                counts += np.bincount(ids[begin:end], minlength=len(counts))
        return torch.from_numpy(counts)

    def _file(self, text: Text, suffix: str) -> Path:
        return self.folder / f"shard-{text.shard}.{suffix}"

    def _read(self, text: Text, suffix: str, dtype: np.dtype, row: tuple[int, ...], fix: str) -> np.ndarray:
        """A copy of the mapped slice: pages that stay mapped would count as this process's memory."""
        file, offset = self._file(text, suffix), text.start * dtype.itemsize * int(np.prod(row, dtype=int))
        if file not in self._sums:
            self._sums[file] = read_sums(file.with_name(file.name + SUMS))
        rows = np.array(np.memmap(file, dtype, "r", offset, (text.tokens, *row)))
        if not same(rows, text.start, self._sums[file]):
            expected = f"the bytes that were written for {text.id!r}"
            raise InputError(str(file), expected=expected, got="others (its checksum differs)", fix=fix)
        return rows
