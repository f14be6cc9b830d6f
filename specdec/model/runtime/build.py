"""Compile a C++ file once, with the machine's own compiler, into the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

from specdec.files.durable import write_json
from specdec.files.home import cached

# A compiler's message about a flag that it does not support. Other failures, such as a full disk or too little memory,
# do not match.
UNSUPPORTED = re.compile(
    r"(?=.*(unrecogni[sz]ed|unknown|unsupported|not supported|invalid|bad value|cannot find|not found))"
    r"(?=.*(march|mcpu|native|fopenmp|gomp|libomp|lomp|as-needed))",
    re.IGNORECASE,
)
loaded: dict[str, list[str]] = {}  # compiler flags of each library loaded in this process

# Runs a compiler in its own process group, and kills the group as soon as standard input ends. So the compiler ends
# even if the process that waits for it was killed.
_WATCH = """
import os, signal, subprocess, sys, threading
compiler = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
os._exit(min(abs(compiler.wait()), 255))
"""


class BuildError(RuntimeError):
    """There is no compiler, or it failed. The caller continues without the library."""


def load_library(source: Path) -> ctypes.CDLL:
    """Return the compiled library of `source` and the headers beside it.

    It is built once (some seconds) and then read from the cache. `loaded` lists the flags that it was compiled with.

    Raises:
        BuildError: there is no C++ compiler, or it failed; no folder can be written; the library belongs to another
            user.
    """
    compiler = next((path for name in _compilers() if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildError("no C++ compiler was found (install g++ or set CXX)")
    attempts = _commands(compiler, source)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [file.read_text("utf-8") for file in sorted({source, *source.parent.glob("*.hpp")})]
    named = [[Path(word).name for word in command] for command in attempts]  # independent of the checkout's folder
    key = hashlib.sha256("\0".join([*texts, version, _cpu(), repr(named)]).encode()).hexdigest()[:24]
    try:
        folder = cached(f"kernels/{source.stem}-{key}", lambda made: _build(attempts, source, made), deep=True)
        _require_ours(folder)
        library = ctypes.CDLL(str(folder / "library.so"))
        loaded[source.stem] = json.loads((folder / "variant.json").read_bytes())["flags"]
    except OSError as error:
        raise BuildError(str(error)) from error
    return library


def _compilers() -> list[str]:
    return [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]


def _commands(compiler: str, source: Path) -> list[list[str]]:
    """Return the commands to try, best first: for this CPU with threads, then with fewer flags."""
    base = [compiler, "-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", source.name]
    # link the OpenMP runtime that torch has loaded: two runtimes would mean two thread pools
    threads = ["-fopenmp", "-Wl,--as-needed", *_loaded_openmp()[:1]]
    return [[*base, "-march=native", *threads], [*base, "-mcpu=native", *threads], [*base, "-fopenmp"], base]


def _build(attempts: list[list[str]], source: Path, folder: Path) -> None:
    """Write `library.so` and the flags it was built with.

    Raises:
        BuildError: the compiler failed, and not because it lacks a flag.
    """
    first = ""
    for command in attempts:
        status, words = _compile([*command, "-o", str(folder.absolute() / "library.so")], source.parent, folder)
        if status == 0:
            for path in (folder, folder / "library.so"):
                path.chmod(0o700)
            return write_json(folder / "variant.json", {"flags": [Path(word).name for word in command[1:]]})
        lines = words.strip().splitlines() or [f"status {status}"]
        first = first or next((line for line in lines if "error" in line), lines[0])
        if not any(UNSUPPORTED.match(line) for line in lines):
            break
    raise BuildError(f"the C++ compiler {attempts[0][0]} failed: {first}")


def _compile(command: list[str], where: Path, temporary: Path) -> tuple[int, str]:
    """Run a compiler. Return its exit status and messages.

    It ends when this process does, and puts its own files into `temporary`.
    """
    environment = {**os.environ, "TMPDIR": str(temporary.absolute()), "LC_ALL": "C"}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, *command], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=where, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            words = process.stderr.read().decode("utf-8", "replace")
            return process.wait(), words
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _require_ours(folder: Path) -> None:
    """Refuse to run a library that another user may have written.

    Raises:
        BuildError: names the file.
    """
    for path in (folder, folder / "library.so"):
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BuildError(f"{path} belongs to another user, or others may write it; remove it")


def _loaded_openmp() -> list[str]:
    """Return the OpenMP runtimes in this process, torch's own first: other libraries may have brought theirs."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(None, 5)[-1] for line in lines}
    found = [p for p in paths if Path(p).name.startswith(("libgomp", "libiomp", "libomp"))]
    return sorted(found, key=lambda path: ("torch" not in Path(path).parts, path))


def _cpu() -> str:
    """Return the properties of the CPU that -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    keys = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(keys))
