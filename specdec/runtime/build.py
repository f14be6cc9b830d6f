"""Compiles a C++ file with the machine's own compiler, once, into the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from specdec.home import cache_folder


class BuildError(RuntimeError):
    """No compiler, or it refused; the caller goes on without the library."""


def load_library(source: Path) -> ctypes.CDLL:
    """The compiled library of `source` and the headers beside it, from the cache where it was built before (some
    seconds the first time).

    Raises:
        BuildError: there is no C++ compiler, or it failed.
    """
    compiler = next((path for name in _compilers() if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildError("no C++ compiler was found (install g++ or set CXX)")
    attempts = _commands(compiler, source)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [file.read_text("utf-8") for file in sorted({source, *source.parent.glob("*.hpp")})]
    key = "\0".join([*texts, version, _cpu(), repr(attempts)])
    library = cache_folder() / "kernels" / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        _build(attempts, library)
    return ctypes.CDLL(str(library))


def _compilers() -> list[str]:
    return [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]


def _commands(compiler: str, source: Path) -> list[list[str]]:
    """What to try, best first: for this very CPU with threads, then with less."""
    base = [compiler, "-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", str(source)]
    # link the OpenMP runtime that torch has loaded: two runtimes would mean two thread pools
    threads = ["-fopenmp", "-Wl,--as-needed", *_loaded_openmp()[:1]]
    return [[*base, "-march=native", *threads], [*base, "-mcpu=native", *threads], [*base, "-fopenmp"], base]


def _build(attempts: list[list[str]], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    errors = []
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for command in attempts:
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(library)  # another process sees all of it or nothing
                return
            errors.append(done.stderr.strip().splitlines()[:1])
    raise BuildError(f"the C++ compiler {attempts[0][0]} failed: {errors[0]}")


def _loaded_openmp() -> list[str]:
    """OpenMP runtimes in this process (torch brings one)."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(None, 5)[-1] for line in lines}
    return sorted(p for p in paths if Path(p).name.startswith(("libgomp", "libiomp", "libomp")))


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    keys = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(keys))
