"""Show the progress of a long run: a bar on a terminal, or a line per minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.common.entry import stderr
from experiments.common.escape import visible

LOG_SECONDS = 60.0  # between lines without a terminal


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yield a function to call with the amount done since the last call, and a few words about it.

    Args:
        what: name of the work.
        total: amount of work.
    """
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=stderr) as bar:
            task = bar.add_task("", total=total)
            yield lambda amount, words: bar.update(task, advance=amount, description=words)
        return
    begun = last = time.monotonic()
    done = 0

    def advance(amount: int, words: str) -> None:
        nonlocal done, last
        done, now = done + amount, time.monotonic()
        if now - last >= LOG_SECONDS or done >= total:
            last = now
            left = time.strftime("%H:%M:%S", time.gmtime((now - begun) / done * max(total - done, 0)))
            print(f"{time.strftime('%H:%M:%S')} {what} {done:,}/{total:,} {words}, {left} left", file=sys.stderr)

    yield advance


def say(words: str) -> None:
    """Print a line for the user without disturbing the bar."""
    print(visible(words), file=sys.stderr, flush=True)
