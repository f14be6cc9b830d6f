"""How runs end: by a signal, with a disk that fails, with nobody who reads what is printed."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.common.entry import BAD_INPUT, one_line_errors
from experiments.common.faults import FIXES
from experiments.common.signals import Stopped, deferred
from experiments.common.terminal import steady_output
from specdec.errors import InputError


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers are as they were."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run that nohup began ignores it, and so would the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs that a shell runs in the background
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_its_status(number: int, status: int) -> None:
    kept = []

    def run() -> None:
        with one_line_errors():
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGTERM)  # impatient, while the status is written
                kept.append("status")
                raise

    with pytest.raises(SystemExit) as end:
        run()
    assert (end.value.code, kept) == (status, ["status"])


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with one_line_errors():
        os.kill(os.getpid(), signal.SIGHUP)
    with deferred() as stopped:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stopped() is None
    signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_waits_and_the_second_one_does_not() -> None:
    def twice() -> None:
        with deferred() as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped() == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Stopped, match="SIGHUP"):
        twice()


@pytest.mark.parametrize("number", sorted(FIXES))
def test_every_fault_is_one_line_that_names_the_path(number: int, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise OSError(number, os.strerror(number), "/data/run/summary.json")
    assert end.value.code == BAD_INPUT
    assert capsys.readouterr().err == (
        "error: /data/run/summary.json: expected a path that can be read and written, "
        f"got '{os.strerror(number)}'; {FIXES[number]}\n"
    )


def test_a_full_disk_is_one_line_where_the_path_is_unknown(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert capsys.readouterr().err.startswith(
        "error: disk: expected a path that can be read and written, got 'No space"
    )


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    with pytest.raises(ConnectionRefusedError), one_line_errors():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize("place", ["/dev/full", "pipe", "closed", "none"])
def test_printing_ends_no_run(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "pipe":
        reads, writes = os.pipe()
        os.close(reads)
        out = os.fdopen(writes, "w")
    else:
        out = Path("/dev/full" if place == "/dev/full" else os.devnull).open("w")  # noqa: SIM115
    if place == "closed":
        out.close()
    monkeypatch.setattr(sys, "stdout", None if place == "none" else out)
    with steady_output():
        for _ in range(3):
            sys.stdout.write("x" * 10_000)
            sys.stdout.flush()
    out.close()


def test_characters_that_an_encoding_lacks_become_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    with steady_output():
        sys.stdout.write("τ 2.5\n")
    assert data.getvalue() == b"\\u03c4 2.5\n"


def test_the_line_of_an_error_has_an_end(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise InputError("x" * 100_000, expected="a", got="b", fix="the advice at the end")
    line = capsys.readouterr().err
    assert len(line) < 2100
    assert line.endswith("the advice at the end\n")


def test_an_interrupted_run_names_the_signal(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        os.kill(os.getpid(), signal.SIGTERM)
    assert capsys.readouterr().err == "interrupted: SIGTERM\n"
