"""The file of an offline W&B run, once it is whole: on a busy machine its writer outlasts `finish()`."""

from __future__ import annotations

import time
from pathlib import Path

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
