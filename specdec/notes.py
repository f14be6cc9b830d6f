"""Lines on stderr that tell the user what a command left out or chose, and how counts read in them."""

from __future__ import annotations

import sys


def note(words: str) -> None:
    """Print a line on stderr."""
    print(words, file=sys.stderr, flush=True)


def counted(number: int | None, thing: str) -> str:
    """Return a number with its noun, in the plural unless it is one: "1 thread", "1,200 tokens"."""
    return f"{number} {thing}s" if number is None else f"{number:,} {thing}{'' if number == 1 else 's'}"
