"""Read a folder of the target's own text: token ids, answers, and hidden states, in memory-mapped files.

    index.json        target, weights and chat template of the text, format of the files, and how they were made
    shard-0.jsonl     one line per finished sequence: its position in the shard's data files
    shard-0.tokens    int32 ids, one sequence after the other
    shard-0.hidden    one 16-bit row per token; any other feature likewise ("layer:8" in shard-0.layer-8)
    shard-0.*.sums    a checksum for each sequence in a data file (`checksums.py`)

A shard has one writer (`shard.py`); readers read all shards. Of each sequence the data is written first and then its
line, which commits it. Data after the last committed sequence, left by a writer that was killed, is cut off when the
shard is opened for writing again.
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
    """Read a text folder.

    Raises:
        InputError: no such folder, another format, a line that cannot be read, or an incomplete data file. Reading a
            sequence raises it if its checksum differs.
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
        """Texts of the training split, in the order of the folder."""
        return [text for text in self.texts if text.key not in self._held_out]

    @cached_property
    def validation(self) -> list[Text]:
        """Texts of the validation split, in the order of their prompts' hashes."""
        held_out = (text for text in self.texts if text.key in self._held_out)
        return sorted(held_out, key=lambda text: (text.key, text.sample))

    @cached_property
    def _held_out(self) -> set[str]:
        """Keys of the validation prompts, chosen by their hash (`is_validation`).

        If the hashes choose none or all prompts, the prompt with the lowest hash is used.
        """
        keys = {text.key for text in self.texts}
        chosen = {key for key in keys if is_validation(key)}
        return chosen if keys and 0 < len(chosen) < len(keys) else set(sorted(keys)[:1])

    def tokens(self, text: Text) -> Int[np.ndarray, " seq"]:
        """Return the token ids of a sequence."""
        fix = (
            "run experiments.self_distill on the folder again: it leaves the sequence out, and answers its prompt again"
        )
        return self._read(text, "tokens", np.dtype("<i4"), (), fix)

    def feature(self, text: Text, name: str) -> Float[Tensor, "seq dim"]:
        """Return a sequence's features in 16 bits, read from disk and not cached.

        Raises:
            InputError: they are not in the folder.
        """
        self.require(text, name)
        fix = f"delete the file and run experiments.self_distill on the folder with features=[{name}]"
        rows = self._read(text, file_suffix(name), np.dtype("<u2"), (self.origin.dim,), fix)
        return torch.from_numpy(rows).view(self.origin.feature_dtype)

    def require(self, text: Text, name: str) -> None:
        """Refuse a sequence whose features are not in the folder.

        Raises:
            InputError: they are not.
        """
        if not self.has(text, name):
            raise InputError(
                str(self.folder),
                expected=f"the feature {name!r} of every sequence",
                got=f"none for {text.id!r}",
                fix=f"run experiments.self_distill on the folder with features=[{name}]",
            )

    def has(self, text: Text, name: str) -> bool:
        """Return whether a sequence's features are stored."""
        file = self._file(text, file_suffix(name))
        return file.exists() and file.stat().st_size >= FEATURE_BYTES * self.origin.dim * (text.start + text.tokens)

    def frequencies(self) -> Int[Tensor, " vocab"]:
        """Return the number of times each token occurs in the answers of the training split."""
        counts = np.zeros(self.origin.vocab_size, dtype=np.int64)
        for text in self.training:
            ids = self.tokens(text)
            for begin, end in text.answers:
                counts += np.bincount(ids[begin:end], minlength=len(counts))
        return torch.from_numpy(counts)

    def _file(self, text: Text, suffix: str) -> Path:
        return self.folder / f"shard-{text.shard}.{suffix}"

    def _read(self, text: Text, suffix: str, dtype: np.dtype, row: tuple[int, ...], fix: str) -> np.ndarray:
        """Return a sequence's rows as a copy: pages that stay mapped would count as memory of this process.

        Args:
            text: the sequence.
            suffix: of the data file.
            dtype: type of an element.
            row: shape of a row, () for a number.
            fix: what to do, used in the error message.

        Raises:
            InputError: the checksum differs.
        """
        file, offset = self._file(text, suffix), text.start * dtype.itemsize * int(np.prod(row, dtype=int))
        if file not in self._sums:
            self._sums[file] = read_sums(file.with_name(file.name + SUMS))
        rows = np.array(np.memmap(file, dtype, "r", offset, (text.tokens, *row)))
        if not same(rows, text.start, self._sums[file]):
            expected = f"the bytes that were written for {text.id!r}"
            raise InputError(str(file), expected=expected, got="others (its checksum differs)", fix=fix)
        return rows
