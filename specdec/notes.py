"""Lines on stderr that tell the user what a command left out or chose."""

from __future__ import annotations

import sys


def note(words: str) -> None:
    """Print a line on stderr."""
    print(words, file=sys.stderr, flush=True)
