"""Read and write `trace.npz`, the file of a run that replays use.

A text of L tokens has L - 1 positions. At position i, token i is the root of a tree and the tokens after it are the
right ones. The prefill emits the first token of a text, so the first step begins at position 0.

    position    0    1    2    ..   L - 2
    root        t0   t1   t2   ..   t(L-2)
    right       t1.. t2.. t3.. ..   t(L-1)
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
NOTHING = -1  # no node, no candidate
Array = np.ndarray


@dataclass(frozen=True)
class TraceOrigin:
    """The recorded run.

    Args:
        drafter, target: names, as in the summary.
        vocabulary: number of the target's logits.
        temperature: temperature of the run.
        max_new_tokens: largest number of new tokens per text.
        batch_size: rows per batch.
        depths: depths at which candidates were recorded; 0 for a drafter that does not rank candidates.
        ranks: number of recorded candidates per distribution.
        tree: index paths of the run's tree; None for a drafter that does not rank candidates.
        parameters: weights that the drafter reads once per step.
    """

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
    """One recorded text.

    A drafter whose candidates do not depend on the path (Medusa's heads) has `ids` and `logq`: every tree of its
    candidates can be replayed. Other drafters have `nodes`, `parents` and `confidence`, the tree proposed at each root:
    the first n nodes of these trees can be replayed, for every n.

    Args:
        prompt, category, turn, repeat: as in the run's records.
        batch: index of the batch; texts with equal batch, repeat and turn ran together.
        prompt_tokens: tokens of the prompt.
        tokens: new token ids, [length].
        target_ids: the target's most probable tokens after each root, best first, [positions ranks].
        target_logp: their log-probabilities at temperature 1, penalties included, [positions ranks].
        ids: the drafter's candidates, best first, [positions depths ranks].
        logq: their log-probabilities, [positions depths ranks].
        nodes: token ids of the proposed tree, without the root, padded with -1, [positions nodes].
        parents: parent of each node, padded with -1, [positions nodes]. The root is 0, the node in column i is i + 1.
        confidence: as in `TokenTree`, padded with -1, [positions nodes].
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
        """The right candidate at each depth below each root, [positions depths].

        Its rank if the drafter ranks candidates, else the number of its node; -1 from the first depth without one.
        """
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
MOST_HEAD = 2**16  # largest header of an array, in bytes
ARRAYS = ("tokens", "target_ids", "target_logp", "ids", "logq", "nodes", "parents", "confidence")


@dataclass(frozen=True)
class Trace:
    origin: TraceOrigin
    texts: Sequence[TextTrace]

    @property
    def positions(self) -> int:
        return sum(text.positions for text in self.texts)

    @property
    def ranked(self) -> bool:
        """True if any tree can be replayed; False if only the first nodes of the recorded ones."""
        return self.texts[0].ids is not None

    def write(self, folder: Path) -> Path:
        """Write the trace to a run folder, atomically; return its file."""
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
        """Read the trace of a run folder.

        Raises:
            InputError: the folder has no trace, or the file is malformed.
        """
        file, expected = Path(run) / TRACE_FILE, "a run that was recorded"
        if not file.is_file():
            fix = "record one: python -m experiments.bench record=true"
            raise InputError("run", expected=expected, got=f"no {TRACE_FILE} in {str(run)!r}", fix=fix)
        try:
            meta, arrays = _read(file)
            return cls(filled(meta["origin"], TraceOrigin, "origin"), list(_texts(meta["texts"], arrays)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError("run", expected=expected, got=f"{str(file)!r} ({error})", fix="record it again") from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read and check the description and the arrays of a trace. Arrays larger than announced are not unpacked.

    Raises:
        OSError, ValueError, KeyError, TypeError, BadZipFile: the file cannot be read or is malformed.
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
    """Return one array of the archive.

    Args:
        saved: the archive.
        name: name of the array.
        rows: required length of its first axis; None for any.
        sizes: sizes of all arrays in the archive, in bytes.

    Raises:
        ValueError: the type is not numeric, or the shape does not match `rows` or the size in the archive.
    """
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
    """Return the bytes of a trace per position, before compression, which saves about a third.

    Args:
        vocabulary: number of tokens.
        ranks: recorded candidates per distribution.
        depths: recorded depths of a drafter that ranks candidates; None for other drafters.
        nodes: nodes of a tree, for other drafters.
    """
    number, probability = token_type(vocabulary).itemsize, 2
    drafted = depths * ranks * (number + probability) if depths is not None else nodes * (number + 2 + probability)
    return number + ranks * (number + probability) + drafted


def token_type(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest of int16 and int32 that holds every token id and -1."""
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
    """Return the arrays of all texts padded to the largest tree."""
    if parts[0].ndim != 2:
        return list(parts)
    width = max(part.shape[1] for part in parts)
    return [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NOTHING) for part in parts]
