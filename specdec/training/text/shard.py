"""Write a shard of text: for each sequence the data first, then its line, which commits it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from specdec.errors import InputError
from specdec.files.durable import Lines, write_bytes, write_json
from specdec.runs.log import releasing
from specdec.training.text.checksums import SUMS, cut_sums, read_sums, record, same
from specdec.training.text.index import FORMAT, no_index, read_lines, read_origin, shard_numbers
from specdec.training.text.texts import FEATURE_BYTES, TOKEN_BYTES, Origin, Text, file_suffix


class Shard:
    """The only writer of a shard; a context manager. Opening it repairs files that a killed writer left.

    Args:
        folder: the text folder, made if it does not exist.
        number: number of the shard.
        origin: target, weights and chat template of the text.

    Raises:
        InputError: another process is writing the shard, or the folder is of another target or chat template, or has
            shards but no index.
    """

    def __init__(self, folder: Path, number: int, origin: Origin) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number, self.origin = folder, number, origin
        self._lock = FileLock(folder / f".shard-{number}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                str(folder),
                expected=f"shard {number} to have one writer",
                got="another process that is writing it",
                fix="wait for it, stop it, or choose another folder",
            ) from error
        with FileLock(folder / ".index.lock"):
            if not (folder / "index.json").exists():
                if shard_numbers(folder):
                    raise no_index(folder, "no index.json")
                write_json(folder / "index.json", {"format": FORMAT, **asdict(origin), "sources": []})
        read_origin(folder).require_same(origin, folder)
        self.texts = self._mend()
        self._files: dict[str, Lines] = {}

    @property
    def _row_bytes(self) -> int:
        """Bytes of one feature of one token."""
        return FEATURE_BYTES * self.origin.dim

    @property
    def end(self) -> int:
        """Number of committed tokens, which is the start of the next sequence."""
        return self.texts[-1].start + self.texts[-1].tokens if self.texts else 0

    def append(self, text: Text, ids: Sequence[int], features: Mapping[str, Float[Tensor, "seq dim"]]) -> None:
        """Write and commit a sequence.

        Args:
            text: its line; `start` must be `self.end` and `shard` this shard's number.
            ids: token ids.
            features: features by name.

        Raises:
            InputError: a feature is too large for 16 bits.
            OSError: writing failed; the error names the file, and the sequence is not committed.
        """
        assert text.start == self.end
        assert text.shard == self.number
        assert len(ids) == text.tokens
        for name in features:
            size = self._path(file_suffix(name)).stat().st_size if self.end else 0  # an OSError if the file vanished
            assert size == self._row_bytes * self.end, "complete() comes before append()"
        self._write("tokens", text, np.asarray(ids, dtype="<i4").tobytes())
        for name, values in features.items():
            self.append_feature(text, name, values)
        line = asdict(text)
        del line["shard"]
        self._opened("jsonl").append([line])
        self.texts.append(text)

    def append_feature(self, text: Text, name: str, values: Float[Tensor, "seq dim"]) -> None:
        """Append the features of `text`, the first sequence that does not have them yet."""
        half = values.to(self.origin.feature_dtype).cpu().contiguous()
        if not bool(half.isfinite().all()):
            raise InputError(
                f"feature {name!r}",
                expected=f"numbers that {self.origin.dtype} can hold",
                got=f"up to {float(values.abs().max()):.3g}",
                fix="load the target in bfloat16 (target.dtype=bfloat16)",
            )
        self._fill(file_suffix(name), self._row_bytes * text.start)
        self._write(file_suffix(name), text, half.view(torch.uint16).numpy().tobytes())

    def stored(self, name: str) -> int:
        """Return the number of the shard's sequences that have this feature."""
        rows = self._size(file_suffix(name)) // self._row_bytes
        return sum(text.start + text.tokens <= rows for text in self.texts)

    def cut_feature(self, name: str) -> int:
        """Cut a feature's file to whole sequences; return how many it holds."""
        count = self.stored(name)
        rows = self.texts[count - 1].start + self.texts[count - 1].tokens if count else 0
        self._cut(file_suffix(name), rows * self._row_bytes)
        return count

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        with releasing(self._lock, *self._files.values()):
            pass

    def _mend(self) -> list[Text]:
        """Cut off data that was not committed and leave out damaged sequences; return the remaining ones."""
        index = self._path("jsonl")
        lines = read_lines(index, self.number) if index.exists() else []
        for file in self.folder.glob(f"shard-{self.number}.*{SUMS}"):
            cut_sums(file)
        here = self._size("tokens") // TOKEN_BYTES
        whole = [(text, line) for text, line in lines if text.start + text.tokens <= here]
        sound = self._undamaged(whole)
        for count, what in ((len(lines) - len(whole), "torn"), (len(whole) - len(sound), "damaged")):
            if count:
                warnings.warn(f"{index}: {count} sequences were {what} and are left out", stacklevel=4)
        end = sound[-1][0].start + sound[-1][0].tokens if sound else 0
        if len(sound) < len(lines):
            write_bytes(index, b"".join(line for _, line in sound))
        self._cut("jsonl", sum(len(line) for _, line in sound))
        self._cut("tokens", TOKEN_BYTES * end)
        for file in self.folder.glob(f"shard-{self.number}.*"):
            if file.suffix not in (".jsonl", ".tokens", SUMS):
                self._cut(file.suffix[1:], self._row_bytes * end)
        return [text for text, _ in sound]

    def _undamaged(self, lines: list[tuple[Text, bytes]]) -> list[tuple[Text, bytes]]:
        """Return the sequences whose ids match their checksums."""
        file, sums = self._path("tokens"), read_sums(self._path(f"tokens{SUMS}"))
        if not lines or not sums:
            return lines
        ids = np.memmap(file, "<i4", "r", shape=(file.stat().st_size // TOKEN_BYTES,))
        return [(t, line) for t, line in lines if same(ids[t.start : t.start + t.tokens], t.start, sums)]

    def _path(self, suffix: str) -> Path:
        return self.folder / f"shard-{self.number}.{suffix}"

    def _size(self, suffix: str) -> int:
        return self._path(suffix).stat().st_size if self._path(suffix).exists() else 0

    def _cut(self, suffix: str, size: int) -> None:
        if self._size(suffix) > size:
            with self._path(suffix).open("r+b") as file:
                file.truncate(size)

    def _fill(self, suffix: str, size: int) -> None:
        """Extend a file to `size` bytes, the start of the next sequence, if a sequence before it was left out."""
        self._opened(suffix)
        if self._size(suffix) < size:
            os.truncate(self._path(suffix), size)

    def _write(self, suffix: str, text: Text, data: bytes) -> None:
        """Append a sequence's rows to a data file, after appending its checksum."""
        self._opened(f"{suffix}{SUMS}").write(record(text.start, data))
        self._opened(suffix).write(data)

    def _opened(self, suffix: str) -> Lines:
        if suffix not in self._files:
            self._files[suffix] = Lines(self._path(suffix))
        return self._files[suffix]


def require_disk(folder: Path, needed: int, what: str, fix: str) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet.

    Args:
        folder: the folder.
        needed: bytes that will be written.
        what: what will be written, used in the error message.
        fix: what to do, used in the error message.

    Raises:
        InputError: fewer bytes are free than needed.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            str(folder), expected=f"{needed / 2**30:.2f} GiB of disk for {what}", got=f"{free / 2**30:.2f} GiB free",
            fix=fix,
        )  # fmt: skip
    return free
