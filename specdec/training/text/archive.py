"""Pack a folder's token ids into one small file, and unpack it; everything else can be computed from the ids again.

The file is an xz stream: one line of JSON (the origin and the sequences), then the ids, 16 or 32 bits each.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from specdec.errors import InputError
from specdec.files.checked import MOST_BYTES, decompress, parse_json, read_bounded
from specdec.files.durable import write_bytes
from specdec.options import filled
from specdec.training.text.index import FORMAT, committed, index_of
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import Origin, Text

KINDS = ("<u2", "<u4")  # types of ids
MOST_FILE = 16 * 2**30
_ALIGNED = {"lc": 2, "lp": 1, "pb": 1}  # the ids' bytes alternate between low and high


def export_text(folder: Path, file: Path) -> int:
    """Write a folder's sequences to `file` atomically; return its size in bytes."""
    store = TextStore(folder)
    kind = "<u2" if store.origin.vocab_size <= 1 << 16 else "<u4"
    texts, start = [], 0
    for text in store.texts:
        texts.append({**asdict(text), "start": start, "shard": 0})
        start += text.tokens
    head = {
        "format": FORMAT, "origin": asdict(store.origin), "sources": index_of(folder)["sources"], "ids": kind,
        "texts": texts,
    }  # fmt: skip
    ids = np.concatenate([store.tokens(text) for text in store.texts] or [np.empty(0, "<i4")]).astype(kind)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **_ALIGNED}]
    data = lzma.compress(json.dumps(head).encode() + b"\n" + ids.tobytes(), filters=filters)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, data)
    return len(data)


def import_text(file: Path, shard: Shard) -> int:
    """Append the sequences of a file to a shard, except those that its folder has already.

    Token ids are stored without features.

    Returns:
        The number of new sequences.

    Raises:
        InputError: the file cannot be read, or is of another target or chat template.
    """
    try:
        origin, texts, ids = read_archive(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(file), expected="a file written with export_to=", got=str(error) or type(error).__name__,
            fix="check the path, or export it again",
        ) from error  # fmt: skip
    origin.require_same(shard.origin, file)
    have, new = {(text.key, text.sample) for text in committed(shard.folder)}, 0
    for text in texts:
        if (text.key, text.sample) not in have:
            here = replace(text, start=shard.end, shard=shard.number)
            shard.append(here, ids[text.start : text.start + text.tokens].tolist(), {})
            new += 1
    return new


def read_archive(file: Path) -> tuple[Origin, list[Text], np.ndarray]:
    """Read and check a file: its origin, its sequences and their ids. Unpack no more bytes than its head announces.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file cannot be read or is malformed.
    """
    data = read_bounded(file, MOST_FILE)
    first, end, _ = decompress(data, MOST_BYTES).partition(b"\n")
    head = parse_json(first) if end else None
    if not isinstance(head, dict) or head["format"] != FORMAT or head["ids"] not in KINDS:
        raise ValueError("no head of a known format")
    origin = filled(head["origin"], Origin, "origin")
    texts = [Text(**text) for text in head["texts"]]
    for text in texts:
        text.require_sound()
    size, count = np.dtype(head["ids"]).itemsize, sum(text.tokens for text in texts)
    whole = len(first) + 1 + size * count
    rest = decompress(data, whole + 1)[len(first) + 1 :]
    if len(rest) != size * count:
        raise ValueError(f"{count:,} ids in its head, {'more' if len(rest) > size * count else 'fewer'} in the file")
    ids = np.frombuffer(rest, head["ids"])
    for text in texts:
        text.require_sound(len(ids))
    if len(ids) and int(ids.max()) >= origin.vocab_size:
        raise ValueError(f"the id {int(ids.max())}, the vocabulary has {origin.vocab_size}")
    return origin, texts, ids.astype("<i4")
