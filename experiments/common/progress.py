"""How far a long run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.common.entry import stderr
from experiments.common.escape import visible

LOG_SECONDS = 60.0  # between lines where there is no terminal


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Call what it yields with the amount that was done since, and a few words on how it goes."""
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
    """A line for the user, beside the bar."""
    print(visible(words), file=sys.stderr, flush=True)
