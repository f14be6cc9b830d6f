"""Cache folder for results that are kept between runs. They are checked at every start and made again if damaged."""

from __future__ import annotations

import errno
import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from specdec.files.durable import is_whole, remove, replacing, seal

_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def cache_folder() -> Path:
    """Return `$SPECDEC_HOME`, or `specdec` in the user's cache folder."""
    return Path(os.environ.get("SPECDEC_HOME") or user_cache_path("specdec"))


def cached(name: str, make: Callable[[Path], None], *, deep: bool = False) -> Path:
    """Return a sealed folder below `cache_folder()`; make it, under a lock, if it is missing or damaged.

    If the cache folder cannot be written, print a line and make the folder in a temporary one, for this process only.

    Args:
        name: path relative to the cache folder.
        make: writes the contents into an empty folder.
        deep: compare hashes at every start, not only sizes.

    Raises:
        OSError: neither folder can be written.
    """
    folder = cache_folder() / name
    if is_whole(folder, deep=deep):
        return folder
    try:
        return _made(folder, make, deep)
    except OSError as error:
        if error.errno not in _UNWRITABLE or not _below(error.filename, cache_folder()):
            raise
        print(  # noqa: T201
            f"SPECDEC_HOME: {cache_folder()} cannot be written ({error.strerror}); {name} goes to a temporary folder "
            "and is made again in every run",
            file=sys.stderr,
        )
        return _made(Path(_temporary().name) / name, make, deep)


def _made(folder: Path, make: Callable[[Path], None], deep: bool) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not is_whole(folder, deep=deep):
            for litter in folder.parent.glob(f".{folder.name}.*.unfinished"):
                remove(litter)
            with replacing(folder) as unfinished:
                unfinished.mkdir(mode=0o700)
                make(unfinished)
                seal(unfinished)
    return folder


def _below(file: object, folder: Path) -> bool:
    return isinstance(file, str | os.PathLike) and Path(os.path.abspath(file)).is_relative_to(folder.absolute())


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="specdec-")
