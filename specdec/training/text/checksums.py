"""Checksums of the sequences in a data file, in a file next to it.

    shard-0.hidden         rows, one sequence after the other
    shard-0.hidden.sums    for each sequence: its first row (int64) and the CRC-32 of its rows (uint32)

If several records have the same first row, the last one counts: a sequence that was cut off is written again. Folders
of older versions have no such files and are not checked.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

SUMS = ".sums"
_RECORD = np.dtype([("start", "<i8"), ("crc", "<u4")])


def record(start: int, data: bytes) -> bytes:
    """Return the record of a sequence whose first row is `start` and whose rows are `data`."""
    return np.array([(start, zlib.crc32(data))], _RECORD).tobytes()


def read_sums(file: Path) -> dict[int, int]:
    """Return checksums by first row; empty if the file does not exist. An incomplete last record is left out."""
    data = file.read_bytes() if file.exists() else b""
    found = np.frombuffer(data, _RECORD, len(data) // _RECORD.itemsize)
    return dict(zip(found["start"].tolist(), found["crc"].tolist(), strict=True))


def cut_sums(file: Path) -> None:
    """Remove an incomplete last record, left by a writer that was killed."""
    if file.exists() and (torn := file.stat().st_size % _RECORD.itemsize):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size - torn)


def same(rows: np.ndarray, start: int, sums: dict[int, int]) -> bool:
    """Return whether rows match their checksum; True if there is no checksum."""
    return start not in sums or zlib.crc32(np.ascontiguousarray(rows).data) == sums[start]
