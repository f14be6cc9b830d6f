"""A checksum for each sequence in a data file, in a file beside it.

    shard-0.hidden         rows, one sequence after the other
    shard-0.hidden.sums    for each sequence: its first row (int64) and the CRC-32 of its rows (uint32)

Of several records with the same first row the last one counts: a sequence that was cut off is written again. A folder
of an older version has no such files, and is not checked.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

SUMS = ".sums"
_RECORD = np.dtype([("start", "<i8"), ("crc", "<u4")])


def record(start: int, data: bytes) -> bytes:
    """What is appended for a sequence whose rows, from row `start` on, are `data`."""
    return np.array([(start, zlib.crc32(data))], _RECORD).tobytes()


def read_sums(file: Path) -> dict[int, int]:
    """The checksums by the first row; empty if there is no such file. A record that is cut off is left out."""
    data = file.read_bytes() if file.exists() else b""
    found = np.frombuffer(data, _RECORD, len(data) // _RECORD.itemsize)
    return dict(zip(found["start"].tolist(), found["crc"].tolist(), strict=True))


def cut_sums(file: Path) -> None:
    """Cut off a record that a killed writer left unfinished."""
    if file.exists() and (torn := file.stat().st_size % _RECORD.itemsize):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size - torn)


def same(rows: np.ndarray, start: int, sums: dict[int, int]) -> bool:
    """Whether rows are those that were written; also if nothing is known of them."""
    return start not in sums or zlib.crc32(np.ascontiguousarray(rows).data) == sums[start]
