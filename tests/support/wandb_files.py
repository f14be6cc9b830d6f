"""The file of an offline W&B run, once it is whole: on a busy machine its writer outlasts `finish()`."""

from __future__ import annotations

import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

HEADER, QUIET, PATIENCE = 7, 0.5, 30.0  # bytes; seconds without growth that count as the end; seconds to wait for it


def whole_file(folder: Path) -> Path:
    """The only run's file below a folder of W&B's."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    size, since, begun = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - begun < PATIENCE:
        now = file.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif size > HEADER and time.monotonic() - since > QUIET:
            break
        time.sleep(0.05)
    return file


def wandb_records(file: Path) -> list[pb.Record]:
    """Read what W&B wrote from its file: records in blocks of 32 KiB, in the format of LevelDB's log."""
    data, place, records, whole = file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # no room for a header at the end of a block
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(pb.Record.FromString(whole))
            whole = b""
    return records
