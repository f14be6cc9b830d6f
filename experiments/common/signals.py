"""End a run at SIGTERM and SIGHUP as at Ctrl-C: finished work is kept, and the exit status names the signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any]


class Stopped(KeyboardInterrupt):
    """Raised when a signal ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """Return 128 + the signal's number, as shells do: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` at the first signal.

    Further signals are ignored while the run records how it ended, except Ctrl-C, which ends it at once. Signals that
    the caller ignores (nohup) or handles itself are not changed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for other in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(other) is stop:
                signal.signal(other, lambda number, frame: None)
        raise Stopped(number)

    with _handling(stop, (signal.SIG_DFL, signal.default_int_handler)):
        yield


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Hold back the first signal: the yielded function returns its number, or None. The second raises `Stopped`."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise Stopped(number)
        came.append(number)

    taken = [signal.getsignal(number) for number in STOPS]
    with _handling(note, [handler for handler in taken if handler is not signal.SIG_IGN]):
        yield lambda: came[0] if came else None


@contextmanager
def _handling(handler: Handler, instead_of: Any) -> Iterator[None]:
    """Handle the signals whose handler is one of `instead_of`. Does nothing outside the main thread."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: was for number in STOPS if (was := signal.getsignal(number)) in instead_of}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
