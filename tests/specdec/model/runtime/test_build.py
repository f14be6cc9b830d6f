"""Compiling: once, for this checkout and any other, with nothing left behind and nothing remembered wrongly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from specdec.model.runtime import build
from specdec.model.runtime.build import UNSUPPORTED, BuildError, load_library

SOURCE = 'extern "C" int answer() { return 42; }'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "home"))
    (tmp_path / "answer.cpp").write_text(SOURCE)
    return tmp_path / "answer.cpp"


def libraries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "home" / "kernels").glob("*/library.so"))


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A compiler that does what a script says."""
    file = tmp_path / "cxx"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("CXX", str(file))


def test_one_library_for_every_checkout(source: Path, tmp_path: Path) -> None:
    assert load_library(source).answer() == 42
    assert "-march=native" in build.loaded["answer"] or "-mcpu=native" in build.loaded["answer"]
    (file,) = libraries(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o700
    written = file.stat().st_mtime_ns
    other = tmp_path / "elsewhere" / "answer.cpp"
    other.parent.mkdir()
    shutil.copy(source, other)
    load_library(other)
    assert [(path, path.stat().st_mtime_ns) for path in libraries(tmp_path)] == [(file, written)]


def test_a_library_that_others_may_write_is_not_run(source: Path, tmp_path: Path) -> None:
    load_library(source)
    libraries(tmp_path)[0].chmod(0o777)
    with pytest.raises(BuildError, match=r"library\.so belongs to another user, or others may write it; remove it"):
        load_library(source)


def test_a_compile_that_fails_says_nothing_about_flags(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, 'test "$1" = --version || { echo "fatal error: Killed signal" >&2; exit 1; }')
    with pytest.raises(BuildError, match="fatal error: Killed signal"):
        load_library(source)
    assert not libraries(tmp_path)
    script = (
        'case "$*" in *march=native*) echo "error: unrecognized option -march=native" >&2; exit 1;; esac; exec c++ "$@"'
    )
    compiler(tmp_path, monkeypatch, script)
    assert load_library(source).answer() == 42
    assert "-march=native" not in build.loaded["answer"]


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("g++: error: unrecognized command-line option '-mcpu=native'", True),
        ("clang++: error: unsupported option '-fopenmp'", True),
        ("ld: cannot find -lgomp", True),
        ("error: bad value ('native') for '-march=' switch", True),
        ("cc1plus: out of memory allocating 65536 bytes", False),
        ("fatal error: error writing to /tmp/cc.s: No space left on device", False),
        ("decoder.cpp:3:1: error: unknown type name 'flaot'", False),
    ],
)
def test_which_words_are_about_flags(line: str, flag: bool) -> None:
    assert bool(UNSUPPORTED.match(line)) == flag


def test_a_kill_while_compiling_leaves_no_compiler_and_the_next_start_cleans_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'test "$1" = --version && exit; touch "$TMPDIR/litter"; echo $$ > {tmp_path}/pid; sleep 600'
    compiler(tmp_path, monkeypatch, script)
    load = f"load_library(Path({str(source)!r}))"
    code = f"from pathlib import Path; from specdec.model.runtime.build import load_library; {load}"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
        compiling = int((tmp_path / "pid").read_text())
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(compiling) or psutil.Process(compiling).status() == "zombie")
    monkeypatch.delenv("CXX")
    compiler(tmp_path, monkeypatch, 'test "$1" = --version && exit; exec c++ "$@"')
    assert load_library(source).answer() == 42
    inside = {path.name for path in (tmp_path / "home" / "kernels").iterdir()}
    assert len(inside) == 2, inside  # the library's folder and its lock


def test_torchs_own_openmp_is_linked_whatever_else_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [
        f"7f00-7f01 r-xp 0000 08:01 1 /lib/{name}" for name in ("a.libs/libgomp-1.so", "torch/lib/libgomp.so.1", "c.so")
    ]
    monkeypatch.setattr(Path, "read_text", lambda *_: "\n".join(maps))
    assert build._loaded_openmp() == ["/lib/torch/lib/libgomp.so.1", "/lib/a.libs/libgomp-1.so"]


def until(done: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
