"""Forwards as captured graphs (`untyped_graphs.py`), in a process without the run-time type checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import untyped_graphs


def test_forwards_can_be_captured_and_replayed() -> None:
    file = Path(untyped_graphs.__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", str(file)],
        cwd=file.parents[1],
        env={**os.environ, "UNTYPED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
