"""Files that somebody else may have written, read within bounds: what is wrong is an OSError or a ValueError, never a
full memory, an endless loop or an error of a library's own kind.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 256 * 2**20  # of a JSON or YAML file, or of a header
MOST_MEMORY = 2**30  # of a decompressor


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """A regular file's bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than `most`.
    """
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    with file.open("rb") as data:
        found = data.read(most + 1)
    if len(found) > most:
        raise ValueError(f"more than {most:,} bytes")
    return found


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
    try:
        return yaml.load(read_bounded(file).decode("utf-8"), Loader=_PlainLoader)
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
