"""Write files and folders atomically and durably: they are complete or absent, also after a kill or a power failure.

    replacing(path)   write next to `path`, then replace it in one step
    Lines             append whole lines; a failed write leaves none of its bytes
    seal, is_whole    record sizes and hashes of a folder's files, and compare them later

A rename is atomic but not durable. Therefore files are flushed to the disk (fsync) before the rename, and their folder
after it. A process that is killed while it writes leaves at most a file `.NAME.xxxxxxxx.unfinished`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

UNFINISHED = ".unfinished"
SEAL = ".seal.json"
SYNC_SECONDS = 1.0  # longest time between two flushes while lines are appended
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 atomically. Half a surrogate pair becomes its escape, as in JSON."""
    write_bytes(path, encoded(text))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(data)


def encoded(text: str) -> bytes:
    """Return text in UTF-8. Half a surrogate pair, which UTF-8 cannot encode, becomes `\\udXXX`."""
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an unused path next to `path`; the file or folder written there then replaces `path`, durably.

    If the body raises, what it wrote is removed and `path` is unchanged.

    Raises:
        OSError: writing failed; the error names `path`.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex[:8]}{UNFINISHED}")
    try:
        with naming(path):
            yield unfinished
            put_in_place(unfinished, path)
    except BaseException:
        remove(unfinished)
        raise


def put_in_place(unfinished: Path, path: Path) -> None:
    """Flush a finished file or folder to the disk and replace `path` with it, durably."""
    _sync_all(unfinished)
    _take_place(unfinished, path)
    sync(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make errors of the operating system name `path`, because writes do not name their file.

    Errors of libraries that contain an errno become OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(UNFINISHED)):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        if (number := _number(error)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


class Lines:
    """An append-only file of lines, for one writer.

    If the process crashes, nothing that was appended is lost; if the machine does, lines since the last flush are.
    While lines are appended, there is a flush every `SYNC_SECONDS`.

    Args:
        path: the file, made if it does not exist.
        fresh: empty the file first.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self._path = path
        with naming(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
            self._file = os.open(path, flags, 0o666)
        self._synced, self._open = time.monotonic(), True

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append each record as a line of JSON.

        Raises:
            OSError: writing failed; the error names the file, which is unchanged.
        """
        self.write(encoded("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)))

    def write(self, data: bytes) -> None:
        """Append all bytes or none.

        Raises:
            OSError: as in `append`.
        """
        with naming(self._path):
            size = os.fstat(self._file).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Flush the file to the disk."""
        with naming(self._path):
            os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            self.sync()
        finally:
            os.close(self._file)


def seal(folder: Path) -> None:
    """Record the size, mtime and hash of every file below `folder`, in the file `SEAL`."""
    write_json(folder / SEAL, {name: _described(folder / name) for name in _names(folder)})


def is_whole(folder: Path, *, deep: bool = False) -> bool:
    """Return whether the files of a sealed folder are unchanged.

    Sizes are always compared; hashes only if a file's mtime has changed, or if `deep`.
    """
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
        return all(_fits(folder / name, was, deep) for name, was in sealed.items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def sync(path: Path) -> None:
    """Flush a file or folder to the disk. Errors of file systems that cannot flush folders are ignored."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; never raise."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed writers left in a folder. The caller must hold the folder's lock."""
    for path in folder.glob(f".*{UNFINISHED}"):
        remove(path)


def _sync_all(path: Path) -> None:
    if path.is_dir():
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
    else:
        sync(path)


def _take_place(unfinished: Path, path: Path) -> None:
    """Rename `unfinished` to `path`; if both are folders, exchange them and remove the old one."""
    if not path.is_dir() or path.is_symlink() or not unfinished.is_dir():
        os.replace(unfinished, path)
    else:
        if not _exchange(unfinished, path):
            aside = unfinished.with_name(unfinished.name.replace(UNFINISHED, f".old{UNFINISHED}"))
            os.rename(path, aside)
            os.rename(unfinished, path)
            unfinished = aside
        remove(unfinished)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False if the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _number(error: Exception) -> int | None:
    """Return the errno of a library's error, or None if it is no error of the operating system.

    The message of safetensors contains the errno; that of torch's zip writer does not, so EIO is returned for it.
    """
    if found := re.search(r"os error (\d+)", str(error)):
        return int(found[1])
    return errno.EIO if re.search(r"PytorchStreamWriter|iostream error|unexpected pos", str(error)) else None


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != SEAL)


def _described(file: Path) -> dict[str, Any]:
    found = file.stat()
    return {"size": found.st_size, "time": found.st_mtime_ns, "sha256": _hash(file)}


def _fits(file: Path, was: Mapping[str, Any], deep: bool) -> bool:
    found = file.stat()
    known = found.st_mtime_ns == was["time"] and not deep
    return found.st_size == was["size"] and (known or _hash(file) == was["sha256"])


def _hash(file: Path) -> str:
    state = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            state.update(block)
    return state.hexdigest()
