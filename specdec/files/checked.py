"""Read untrusted files within limits.

A bad file raises OSError or ValueError. It never fills the memory, never causes an endless loop, and never raises a
library's own exception.
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

MOST_BYTES = 256 * 2**20  # largest JSON or YAML file, or header
MOST_MEMORY = 2**30  # most bytes of memory for a decompressor


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it has more than `most` bytes.
    """
    require_regular(file)
    with file.open("rb") as data:
        found = data.read(most + 1)
    if len(found) > most:
        raise ValueError(f"more than {most:,} bytes")
    return found


def require_regular(file: Path) -> None:
    """Refuse everything but a regular file.

    Raises:
        OSError: there is no such file, or it is a folder, pipe or device.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(file))


def open_below(folder: Path, name: str) -> BinaryIO:
    """Open a regular file for reading by its path below a folder.

    No link below the folder is followed, even if it replaces a file or folder while this runs.

    Raises:
        OSError: there is no such file, a link is in the path (ELOOP, or ENOTDIR for a folder), or it is not a regular
            file.
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
    """Return the value of a JSON text.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(file: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError, ValueError: as in `read_bounded` and `parse_json`.
    """
    return parse_json(read_bounded(file))


def read_yaml(file: Path) -> Any:
    """Return the value of a YAML file without aliases, because a few lines of aliases can expand beyond any memory.

    Raises:
        OSError: it cannot be read.
        ValueError: not YAML, too large, or with aliases or tags.
    """
    return parse_yaml(read_bounded(file))


def parse_yaml(data: bytes) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: as in `read_yaml`.
    """
    try:
        return yaml.load(data.decode("utf-8"), Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decompress(data: bytes, most: int) -> bytes:
    """Return the first `most` bytes of an xz stream, or all if it has fewer.

    Raises:
        ValueError: not an xz stream, an incomplete one, or one that needs more memory than `MOST_MEMORY`.
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
    """Loader of safe YAML that refuses aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)
