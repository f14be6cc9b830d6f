"""Files that somebody else may have written, read within bounds: what is wrong is an OSError or a ValueError, never a
full memory, an endless loop or an error of a library's own kind.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MOST_BYTES = 256 * 2**20  # of a JSON or YAML file, or of a header
MOST_MEMORY = 2**30  # of a decompressor


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """A regular file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is larger than `most`.
    """
    require_regular(file)
    with file.open("rb") as data:
        found = data.read(most + 1)
    if len(found) > most:
        raise ValueError(f"more than {most:,} bytes")
    return found


def require_regular(file: Path) -> None:
    """Raises OSError: nothing there, or a folder, pipe or device."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(file))


def open_below(folder: Path, name: str) -> BinaryIO:
    """Open a regular file by its path below a folder. No link below the folder is followed, even if it takes the place
    of a file or folder while this runs.

    Raises:
        OSError: nothing there, a link (ELOOP, or ENOTDIR for a folder), or no regular file.
    """
    *inside, last = Path(name).parts
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in inside:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)
            os.close(held)
            held = below
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=held)
    finally:
        os.close(held)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "no regular file", str(folder / name))
    return os.fdopen(file, "rb")


def parse_json(data: bytes | str) -> Any:
    """Raises ValueError for what is no JSON, or nested too deeply to be ours."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(file: Path) -> Any:
    """Raises OSError or ValueError."""
    return parse_json(read_bounded(file))


def read_yaml(file: Path) -> Any:
    """Plain YAML without aliases: a few lines of them can stand for more than any memory holds.

    Raises:
        OSError: it cannot be read.
        ValueError: no YAML, or one with aliases or tags.
    """
    return parse_yaml(read_bounded(file))


def parse_yaml(data: bytes) -> Any:
    """Raises ValueError, as `read_yaml`."""
    try:
        return yaml.load(data.decode("utf-8"), Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decompress(data: bytes, most: int) -> bytes:
    """The first `most` bytes of an xz stream, at most.

    Raises:
        ValueError: no xz stream, or one that wants more memory than there should be need for.
    """
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY)
        found = stream.decompress(data, max_length=most)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error) or "no xz stream") from error
    if len(found) < most and not stream.eof:
        raise ValueError("the stream is cut off")
    return found


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML; an alias is an error."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)
