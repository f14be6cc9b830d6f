"""Keep printing from ending a run: with a closed pipe, a full disk or a narrow encoding only the output suffers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Steady:
    """A text stream that never fails: after the first failure its text is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: the stream is closed
            with suppress(OSError, ValueError, AttributeError):  # its buffer is flushed at exit and needs a destination
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def steady_output() -> Iterator[None]:
    """Make standard output and error, and logging to them, unable to end the run."""
    for number in range(3):  # or the next opened file would get the number of a closed stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    sys.stdout, sys.stderr = (_steady(stream) for stream in before)
    try:
        yield
    finally:
        for stream, was in zip((sys.stdout, sys.stderr), before, strict=True):
            stream.flush() if was is not None else stream.close()
        sys.stdout, sys.stderr = before
        logging.raiseExceptions = raises


def _steady(stream: Any) -> Any:
    if stream is None:  # Python's value for a stream that was closed at start
        return open(os.devnull, "w", encoding="utf-8")
    with suppress(AttributeError, OSError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks
    return Steady(stream)
