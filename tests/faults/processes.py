"""Entry points in processes of their own, forked from this one, where everything is imported already; and the faults
that are injected there."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.sweeps.launch import launch

SECONDS = 240.0  # of the slowest machine, for one run
ENTRIES = ("bench", "convert_heads", "self_distill", "simulate", "train")
MAINS: dict[str, Callable[[], None]] = {name: import_module(f"experiments.{name}").main for name in ENTRIES}
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Done:
    """How a process ended. status: negative if a signal killed it; operations: changes that it made to files below the
    watched folder, or 0 if it died before it could tell."""

    status: int
    out: str
    err: str
    operations: int

    @property
    def error(self) -> str:
        """Its one line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class Operations:
    """Counts changes to files below a folder, and does `act` just before change number `at`: an audit hook sees what
    Python opens, renames and removes; fsync and write are wrapped, as there are no events of them."""

    def __init__(self, watched: Path, at: int | None, act: Callable[[], None]) -> None:
        self._watched, self._at, self._act, self.count = str(watched), at, act, 0

    def install(self) -> None:
        sys.addaudithook(self._event)
        for name in ("fsync", "write"):
            setattr(os, name, self._wrapped(getattr(os, name)))

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or (event == "open" and not int(arguments[2] or 0) & CHANGES):
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._watched):
            self._next()

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: int, *rest: Any) -> Any:
            if os.readlink(f"/proc/self/fd/{file}").startswith(self._watched):
                self._next()
            return function(file, *rest)

        return call

    def _next(self) -> None:
        self.count += 1
        if self.count == self._at:
            self._act()


def signalled(number: int) -> Callable[[], None]:
    """The process gets a signal."""
    return lambda: os.kill(os.getpid(), number)


def failing(number: int) -> Callable[[], None]:
    """The operation fails with an errno."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


KILLED = signalled(signal.SIGKILL)


def run(
    entry: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    at: int | None = None,
    act: Callable[[], None] = KILLED,
    prepare: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run an entry point.

    Args:
        entry: its name.
        arguments: its command line.
        folder: what it works in; changes below it are counted. What it prints is kept beside it.
        at, act: what happens just before change number `at`.
        prepare: is called in the process before anything else, such as to set a limit.
        environment: variables beside those of this process.
    """
    kept = folder.with_name(f"{folder.name}-printed")
    kept.mkdir(exist_ok=True)
    out, err, count = (kept / name for name in ("out", "err", "count"))
    for file in (out, err, count):
        file.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _child(entry, arguments, folder, (out, err, count), Operations(folder, at, act), prepare, environment or {})
    status = _wait(child)
    told = count.read_text()
    return Done(status, out.read_text(errors="replace"), err.read_text(errors="replace"), int(told or 0))


def _child(
    entry: str,
    arguments: Sequence[str],
    folder: Path,
    files: tuple[Path, Path, Path],
    operations: Operations,
    prepare: Callable[[], None],
    environment: Mapping[str, str],
) -> None:
    status = 1
    try:
        for number, file in enumerate(files[:2], 1):
            handle = os.open(file, os.O_WRONLY | os.O_TRUNC)
            os.dup2(handle, number)
            os.close(handle)
        encoding = environment.get("PYTHONIOENCODING", "utf-8")
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=encoding, closefd=False, buffering=1)  # noqa: SIM115
        os.environ.update(environment)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        warnings.resetwarnings()
        warnings.simplefilter("default")  # pytest's own filters and its record of warnings end here
        warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)  # noqa: T201
        logging.getLogger().handlers.clear()
        sys.argv = [entry, *arguments]
        prepare()
        operations.install()
        launch(MAINS[entry])
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    files[2].write_text(str(operations.count))
    os._exit(status)


def _wait(child: int) -> int:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the run did not end within {SECONDS} seconds")
