"""What a replay needs of a run: `trace.npz`, beside the run's other files. Knows no model.

A text of L tokens has L - 1 positions. At position i its token i is the root of a tree, and the tokens after it are the
right ones. The first token of a text comes from the prompt's forward, so position 0 is where the first step begins.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from specdec.errors import InputError
from specdec.files.checked import MOST_BYTES, parse_json
from specdec.files.durable import replacing
from specdec.options import filled

TRACE_FILE = "trace.npz"
NOTHING = -1  # where nothing was proposed
Array = np.ndarray


@dataclass(frozen=True)
class Origin:
    """drafter, target: names, as in the summary; vocabulary: logits of the target; temperature: of the run; depths:
    how deep was proposed at most; ranks: candidates kept of each distribution; tree: of the run, index paths, where its
    drafter ranks; parameters: of a drafter's weights, read once a step."""

    drafter: str
    target: str
    vocabulary: int
    temperature: float
    max_new_tokens: int
    batch_size: int
    depths: int
    ranks: int
    tree: list[list[int]] | None
    parameters: int = 0


@dataclass(frozen=True)
class TextTrace:
    """One text.

    tokens [length]; target_ids, target_logp [positions ranks]: the target's likeliest tokens at each root, and their
    log-probabilities at temperature 1, penalties included.

    A drafter whose candidates do not depend on the path (Medusa's heads) has ids, logq [positions depths ranks]: every
    tree of its candidates can be replayed. Any other has nodes, parents [positions nodes]: the tree that it proposed at
    each root (without the root, which is parent 0; node i is numbered i + 1), padded with -1: every tree that is
    a beginning of these can be replayed. confidence [positions nodes]: see `TokenTree`.

    batch: which texts ran together.
    """

    prompt: str
    category: str
    turn: int
    repeat: int
    batch: int
    prompt_tokens: int
    tokens: Array
    target_ids: Array
    target_logp: Array
    ids: Array | None = None
    logq: Array | None = None
    nodes: Array | None = None
    parents: Array | None = None
    confidence: Array | None = None

    @property
    def positions(self) -> int:
        return len(self.tokens) - 1

    @cached_property
    def right(self) -> Array:
        """Where nodes are right [positions depths]: the rank of the right token among the candidates of each depth, or
        the number of the node that is right at each depth. -1 from the first depth at which there is none."""
        return self._right_ranks() if self.ids is not None else self._right_nodes()

    def _right_ranks(self) -> Array:
        assert self.ids is not None
        depths = self.ids.shape[1]
        ahead = np.arange(self.positions)[:, None] + 1 + np.arange(depths)
        there = ahead < len(self.tokens)
        came = np.where(there, self.tokens[ahead.clip(max=len(self.tokens) - 1)], NOTHING)
        hit = (self.ids == came[..., None]) & there[..., None]
        ranks = np.where(hit.any(-1), hit.argmax(-1), NOTHING)
        return np.where(np.minimum.accumulate(ranks, 1) >= 0, ranks, NOTHING)

    def _right_nodes(self) -> Array:
        assert self.nodes is not None
        assert self.parents is not None
        rows, size = np.arange(self.positions), self.nodes.shape[1]
        at, found = np.zeros(self.positions, dtype=np.int64), []
        for depth in range(1, size + 1):
            came = self.tokens[(rows + depth).clip(max=self.positions)]
            hit = (self.parents == at[:, None]) & (self.nodes == came[:, None])
            hit &= ((rows + depth < len(self.tokens)) & (at >= 0))[:, None]
            at = np.where(hit.any(1), hit.argmax(1) + 1, NOTHING)
            if not (at >= 0).any():
                break
            found.append(at)
        return np.stack(found, 1) if found else np.full((self.positions, 1), NOTHING)


IDS = ("tokens", "target_ids", "ids", "nodes")
MOST_HEAD = 2**16  # bytes before the numbers of an array
ARRAYS = ("tokens", "target_ids", "target_logp", "ids", "logq", "nodes", "parents", "confidence")


@dataclass(frozen=True)
class Trace:
    origin: Origin
    texts: Sequence[TextTrace]

    @property
    def positions(self) -> int:
        return sum(text.positions for text in self.texts)

    @property
    def ranked(self) -> bool:
        """Whether any tree can be replayed, or beginnings of the recorded ones only."""
        return self.texts[0].ids is not None

    def write(self, folder: Path) -> Path:
        """Whole or not at all."""
        arrays: dict[str, Any] = {}
        for name in ARRAYS:
            parts = [getattr(text, name) for text in self.texts]
            if parts[0] is not None:
                arrays[name] = np.concatenate(_padded(parts))
        described = [_head(text) for text in self.texts]
        meta = json.dumps({"origin": asdict(self.origin), "texts": described}).encode()
        file = folder / TRACE_FILE
        with replacing(file) as unfinished, unfinished.open("wb") as out:
            np.savez_compressed(out, meta=np.frombuffer(meta, dtype=np.uint8), **arrays)
        return file

    @classmethod
    def read(cls, run: Path | str) -> Trace:
        """Of a run folder.

        Raises:
            InputError: no trace there, or a file that holds none.
        """
        file, expected = Path(run) / TRACE_FILE, "a run that was recorded"
        if not file.is_file():
            fix = "record one: python -m experiments.bench record=true"
            raise InputError("run", expected=expected, got=f"no {TRACE_FILE} in {str(run)!r}", fix=fix)
        try:
            meta, arrays = _read(file)
            return cls(filled(meta["origin"], Origin, "origin"), list(_texts(meta["texts"], arrays)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError("run", expected=expected, got=f"{str(file)!r} ({error})", fix="record it again") from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a trace says of its texts, and its arrays, checked; nothing is unpacked that is larger than it says.

    Raises:
        OSError, ValueError, KeyError, TypeError, BadZipFile: what is wrong with it.
    """
    with zipfile.ZipFile(file) as saved:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in saved.infolist()}
        if sizes["meta"] > MOST_BYTES:
            raise ValueError(f"{sizes['meta']:,} bytes of description")
        meta = parse_json(bytes(_array(saved, "meta", None, sizes)))
        lengths = [text["length"] for text in meta["texts"]]
        if not lengths or not all(type(length) is int and length >= 1 for length in lengths):
            raise ValueError("texts without tokens")
        rows = {name: sum(lengths) if name == "tokens" else sum(lengths) - len(lengths) for name in ARRAYS}
        arrays = {name: _array(saved, name, rows[name], sizes) for name in ARRAYS if name in sizes}
    vocabulary = int(meta["origin"]["vocabulary"])
    for name in IDS:
        if name in arrays and arrays[name].size and not -1 <= arrays[name].min() <= arrays[name].max() < vocabulary:
            raise ValueError(f"{name} outside the vocabulary of {vocabulary}")
    if "parents" in arrays and arrays["parents"].size and arrays["parents"].max() >= arrays["parents"].shape[1]:
        raise ValueError("nodes below parents that come later")
    return meta, arrays


def _array(saved: zipfile.ZipFile, name: str, rows: int | None, sizes: Mapping[str, int]) -> Array:
    """One array, whose head must fit the size that the archive says, and its first axis `rows`."""
    with saved.open(f"{name}.npy") as data:
        version = np.lib.format.read_magic(data)
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")(data)
        if dtype.hasobject or dtype.kind not in "iuf":
            raise ValueError(f"{name} of the type {dtype}")
        if not 0 <= sizes[name] - math.prod(shape) * dtype.itemsize <= MOST_HEAD or (
            rows is not None and shape[:1] != (rows,)
        ):
            raise ValueError(f"{name} of the shape {shape}, where {rows} rows were expected")
    with saved.open(f"{name}.npy") as data:
        found: Array = np.lib.format.read_array(data, allow_pickle=False)
    return found


def bytes_per_position(vocabulary: int, ranks: int, depths: int | None, nodes: int) -> int:
    """Before compression, which takes off a third or so. depths: of a drafter that ranks; nodes: of any other."""
    number, probability = token_type(vocabulary).itemsize, 2
    drafted = depths * ranks * (number + probability) if depths is not None else nodes * (number + 2 + probability)
    return number + ranks * (number + probability) + drafted


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The smallest that holds every token and -1."""
    return np.dtype(np.int16 if vocabulary <= np.iinfo(np.int16).max + 1 else np.int32)


def _head(text: TextTrace) -> dict[str, Any]:
    named = {name: getattr(text, name) for name in TextTrace.__dataclass_fields__ if name not in ARRAYS}
    return {**named, "length": len(text.tokens)}


def _texts(heads: Sequence[dict[str, Any]], arrays: dict[str, Array]) -> Iterator[TextTrace]:
    token = position = 0
    for head in heads:
        length = head.pop("length")
        parts: dict[str, Any] = {k: v[token : token + length] if k == "tokens" else v[position : position + length - 1]
                 for k, v in arrays.items()}  # fmt: skip
        token, position = token + length, position + length - 1
        yield TextTrace(**head, **parts)


def _padded(parts: Sequence[Array]) -> list[Array]:
    """Trees of one text may be larger than those of another."""
    if parts[0].ndim != 2:
        return list(parts)
    width = max(part.shape[1] for part in parts)
    return [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NOTHING) for part in parts]
