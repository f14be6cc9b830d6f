"""A folder's token ids as one small file, for shipping: everything else can be computed from them again.

An xz stream: a line of JSON (whose text it is, and the sequences), then the ids, 16 or 32 bits each.
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

KINDS = ("<u2", "<u4")  # of ids
MOST_FILE = 16 * 2**30
_ALIGNED = {"lc": 2, "lp": 1, "pb": 1}  # the ids' bytes alternate between low and high


def export_text(folder: Path, file: Path) -> int:
    """Write a folder's sequences to `file`, whole or not at all; returns its size in bytes."""
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
    """Append the sequences of a file that a folder does not have to one of its shards, as token ids without features;
    returns how many were new.

    Raises:
        InputError: a file that cannot be read, or one of another target or chat template.
    """
    try:
        origin, texts, ids = _read(file)
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


def _read(file: Path) -> tuple[Origin, list[Text], np.ndarray]:
    """Whose text a file holds, its sequences and their ids, checked; not a byte more is unpacked than its head says.

    Raises:
        OSError, ValueError, KeyError, TypeError: what is wrong with it.
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
