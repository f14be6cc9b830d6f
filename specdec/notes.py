"""Lines for the user beside a command's results: what was left out, or chosen for them."""

from __future__ import annotations

import sys


def note(words: str) -> None:
    """Print a line on stderr."""
    print(words, file=sys.stderr, flush=True)
