"""A folder of the target's own text: token ids, which of them are answers, and hidden states, in memory-mapped files.

    index.json        whose text it is and what the files hold
    shard-0.jsonl     one line per finished sequence: where it stands in the shard's data files
    shard-0.tokens    int32 ids, one sequence after the other
    shard-0.hidden    one 16-bit row per token; any other feature likewise ("layer:8" in shard-0.layer-8)

One process writes one shard, readers see all. A sequence is written data first, then its line: the line is the commit.
What a killed writer left behind the last whole line is cut off when the shard is opened for writing again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from torch import Tensor

from specdec.checked_files import parse_json, read_json
from specdec.errors import InputError
from specdec.files import write_json
from specdec.prompts import PromptEncoder
from specdec.target import TargetModel

FORMAT = 1
VALIDATION_SHARE = 1 / 25  # of the prompts, by their hash: the same prompts in every folder
TOKEN_BYTES, FEATURE_BYTES = 4, 2
HIDDEN = "hidden"


@dataclass(frozen=True)
class Origin:
    """Whose text a folder holds. weights, chat_template: fingerprints; dtype: of the features."""

    target: str
    weights: str
    chat_template: str
    vocab_size: int
    dim: int
    dtype: str

    @classmethod
    def of(cls, target: TargetModel) -> Origin:
        template = PromptEncoder.of(target).template if target.tokenizer is not None else "None"
        dim = target.model.config.get_text_config().hidden_size
        dtype = "bfloat16" if target.dtype is torch.bfloat16 else "float16"
        return cls(target.name, fingerprint(target), digest(template), target.vocab_size, dim, dtype)

    @property
    def feature_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float16

    def require_same(self, other: Origin, where: Path) -> None:
        """Refuse a folder made with another target or chat template.

        Raises:
            InputError: says which of the two differs.
        """
        for field, what in (("weights", "target"), ("chat_template", "chat template")):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise InputError(
                    str(where),
                    expected=f"text made with the {what} of {other.target} ({theirs})",
                    got=f"text of {self.target} made with another {what} ({ours})",
                    fix="choose the target it was made with, or another folder",
                )


@dataclass(frozen=True)
class Text:
    """One sequence: a conversation, or its beginning. key: hash of the prompt's turns; sample: tells several answers to
    one prompt apart; start, tokens: its place in the shard's files; answers: [begin, end) of each answer in it."""

    key: str
    sample: int
    id: str
    category: str
    temperature: float
    start: int
    tokens: int
    answers: list[list[int]]
    shard: int = 0

    def require_sound(self, ids: int | None = None) -> None:
        """Check what a file says of a sequence; `ids`: how many there are.

        Raises:
            ValueError: spans outside the sequence, a sequence outside the ids, values of other types.
        """
        numbers = [self.sample, self.start, self.tokens, *(edge for span in self.answers for edge in span)]
        if not all(type(number) is int for number in numbers) or not isinstance(self.temperature, float | int):
            raise ValueError(f"{self.id!r}: numbers that are none")
        if not all(isinstance(text, str) for text in (self.key, self.id, self.category)):
            raise ValueError(f"{self.id!r}: texts that are none")
        if self.start < 0 or self.tokens < 1 or (ids is not None and self.start + self.tokens > ids):
            raise ValueError(f"{self.id!r}: {self.tokens} tokens from {self.start} on")
        for span in self.answers:
            if len(span) != 2 or not 0 <= span[0] < span[1] <= self.tokens:
                raise ValueError(f"{self.id!r}: an answer at {span} of {self.tokens} tokens")
        int(self.key, 16)

    @property
    def answer_tokens(self) -> int:
        return self.answer_tokens_within(self.tokens)

    def answer_tokens_within(self, longest: int) -> int:
        """Those among its first `longest` tokens."""
        return sum(min(end, longest) - min(begin, longest) for begin, end in self.answers)


class TextStore:
    """What a folder holds, for reading.

    Raises:
        InputError: no such folder, one of another format, a line that cannot be read, a torn data file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = read_origin(folder)
        self.texts = committed(folder)
        for last in {text.shard: text for text in self.texts}.values():
            file, needed = self._file(last, "tokens"), TOKEN_BYTES * (last.start + last.tokens)
            size = file.stat().st_size if file.exists() else 0
            if size < needed:
                raise InputError(
                    str(file),
                    expected=f"{needed:,} bytes, as its sequences say",
                    got=f"{size:,} (a torn shard)",
                    fix="run experiments.self_distill on the folder again: it cuts off what is torn",
                )

    @cached_property
    def training(self) -> list[Text]:
        """The texts to learn from, in the order of the folder."""
        return [text for text in self.texts if text.key not in self._held_out]

    @cached_property
    def validation(self) -> list[Text]:
        """The others, in the order of their prompts' hashes."""
        held_out = (text for text in self.texts if text.key in self._held_out)
        return sorted(held_out, key=lambda text: (text.key, text.sample))

    @cached_property
    def _held_out(self) -> set[str]:
        """Prompts by whose answers a drafter is judged: those whose hash says so; if it says so of none or of all, the
        one with the lowest hash."""
        keys = {text.key for text in self.texts}
        chosen = {key for key in keys if is_validation(key)}
        return chosen if keys and 0 < len(chosen) < len(keys) else set(sorted(keys)[:1])

    def tokens(self, text: Text) -> Int[np.ndarray, " seq"]:
        """A sequence's ids."""
        return self._map(text, "tokens", np.dtype("<i4"), ())

    def feature(self, text: Text, name: str) -> Float[Tensor, "seq dim"]:
        """A sequence's features, in 16 bit, read from disk and not kept in memory.

        Raises:
            InputError: they are not in the folder.
        """
        self.require(text, name)
        rows = self._map(text, file_suffix(name), np.dtype("<u2"), (self.origin.dim,))
        return torch.from_numpy(rows).view(self.origin.feature_dtype)

    def require(self, text: Text, name: str) -> None:
        """Raises InputError when a sequence's features are not in the folder."""
        if not self.has(text, name):
            raise InputError(
                str(self.folder),
                expected=f"the feature {name!r} of every sequence",
                got=f"none for {text.id!r}",
                fix=f"run experiments.self_distill on the folder with features=[{name}]",
            )

    def has(self, text: Text, name: str) -> bool:
        """Whether a sequence's features are stored."""
        file = self._file(text, file_suffix(name))
        return file.exists() and file.stat().st_size >= FEATURE_BYTES * self.origin.dim * (text.start + text.tokens)

    def frequencies(self) -> Int[Tensor, " vocab"]:
        """How often each token stands in the answers of the training split."""
        counts = np.zeros(self.origin.vocab_size, dtype=np.int64)
        for text in self.training:
            ids = self.tokens(text)
            for begin, end in text.answers:
                counts += np.bincount(ids[begin:end], minlength=len(counts))
        return torch.from_numpy(counts)

    def _file(self, text: Text, suffix: str) -> Path:
        return self.folder / f"shard-{text.shard}.{suffix}"

    def _map(self, text: Text, suffix: str, dtype: np.dtype, row: tuple[int, ...]) -> np.ndarray:
        """A copy of the mapped slice: pages that stay mapped would count as this process's memory."""
        offset = text.start * dtype.itemsize * int(np.prod(row, dtype=int))
        return np.array(np.memmap(self._file(text, suffix), dtype, "r", offset, (text.tokens, *row)))


class Shard:
    """The one writer of a shard, a context manager. Opening it mends what a killed writer left.

    Raises:
        InputError: another process is writing it; a folder of another target or chat template, or one that lost the
            index which says whose text it holds.
    """

    def __init__(self, folder: Path, number: int, origin: Origin) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number, self.origin = folder, number, origin
        self._lock = FileLock(folder / f".shard-{number}.lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                str(folder),
                expected=f"shard {number} to have one writer",
                got="another process that is writing it",
                fix="wait for it, stop it, or choose another folder",
            ) from error
        with FileLock(folder / ".index.lock"):
            if not (folder / "index.json").exists():
                if shard_numbers(folder):
                    raise _no_index(folder, "no index.json")
                write_json(folder / "index.json", {"format": FORMAT, **asdict(origin), "sources": []})
        read_origin(folder).require_same(origin, folder)
        self.texts = self._mend()
        self._lines = (folder / f"shard-{number}.jsonl").open("a", encoding="utf-8")
        self._files: dict[str, BinaryIO] = {}

    @property
    def _row_bytes(self) -> int:
        """Of one token's feature."""
        return FEATURE_BYTES * self.origin.dim

    @property
    def end(self) -> int:
        """Tokens committed: where the next sequence starts."""
        return self.texts[-1].start + self.texts[-1].tokens if self.texts else 0

    def append(self, text: Text, ids: Sequence[int], features: Mapping[str, Float[Tensor, "seq dim"]]) -> None:
        """Commit a sequence. `text.start` and `text.shard` are the shard's to say.

        Raises:
            InputError: a feature too large for 16 bit.
        """
        assert text.start == self.end
        assert text.shard == self.number
        assert len(ids) == text.tokens
        for name in features:
            assert self._size(file_suffix(name)) == self._row_bytes * self.end, "complete() comes before append()"
        self._write("tokens", np.asarray(ids, dtype="<i4").tobytes())
        for name, values in features.items():
            self.append_feature(name, values)
        line = asdict(text)
        del line["shard"]
        self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._lines.flush()
        self.texts.append(text)

    def append_feature(self, name: str, values: Float[Tensor, "seq dim"]) -> None:
        """Write the next sequence's features."""
        half = values.to(self.origin.feature_dtype).cpu().contiguous()
        if not bool(half.isfinite().all()):
            raise InputError(
                f"feature {name!r}",
                expected=f"numbers that {self.origin.dtype} can hold",
                got=f"up to {float(values.abs().max()):.3g}",
                fix="load the target in bfloat16 (target.dtype=bfloat16)",
            )
        self._write(file_suffix(name), half.view(torch.uint16).numpy().tobytes())

    def stored(self, name: str) -> int:
        """How many of the shard's sequences have this feature."""
        rows = self._size(file_suffix(name)) // self._row_bytes
        return sum(text.start + text.tokens <= rows for text in self.texts)

    def cut_feature(self, name: str) -> int:
        """Cut a feature's file to whole sequences; returns how many it holds."""
        count = self.stored(name)
        rows = self.texts[count - 1].start + self.texts[count - 1].tokens if count else 0
        self._cut(file_suffix(name), rows * self._row_bytes)
        return count

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        for file in self._files.values():
            file.close()
        self._lock.release()

    def _mend(self) -> list[Text]:
        """Cut off what was never committed; returns the sequences whose ids are all there."""
        index = self._path("jsonl")
        lines = read_lines(index, self.number) if index.exists() else []
        here = self._size("tokens") // TOKEN_BYTES
        whole = [(text, behind) for text, behind in lines if text.start + text.tokens <= here]
        if len(whole) < len(lines):
            warnings.warn(
                f"{index}: the last {len(lines) - len(whole)} sequences were torn and are left out", stacklevel=4
            )
        last, behind = whole[-1] if whole else (None, 0)
        end = last.start + last.tokens if last else 0
        self._cut("jsonl", behind)
        self._cut("tokens", TOKEN_BYTES * end)
        for file in self.folder.glob(f"shard-{self.number}.*"):
            if file.suffix not in (".jsonl", ".tokens"):
                self._cut(file.suffix[1:], self._row_bytes * end)
        return [text for text, _ in whole]

    def _path(self, suffix: str) -> Path:
        return self.folder / f"shard-{self.number}.{suffix}"

    def _size(self, suffix: str) -> int:
        return self._path(suffix).stat().st_size if self._path(suffix).exists() else 0

    def _cut(self, suffix: str, size: int) -> None:
        if self._size(suffix) > size:
            with self._path(suffix).open("r+b") as file:
                file.truncate(size)

    def _write(self, suffix: str, data: bytes) -> None:
        if suffix not in self._files:
            self._files[suffix] = self._path(suffix).open("ab")
        self._files[suffix].write(data)
        self._files[suffix].flush()


def index_of(folder: Path) -> dict[str, Any]:
    """A folder's index.

    Raises:
        InputError: there is none, or one of another format.
    """
    try:
        index = read_json(folder / "index.json")
        if not isinstance(index, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        if shard_numbers(folder):
            raise _no_index(folder, f"no readable index.json ({error})") from error
        raise InputError(
            str(folder), expected="a folder of self-distilled text", got=f"no readable index.json ({error})",
            fix="make one with experiments.self_distill",
        ) from error  # fmt: skip
    if index.get("format") != FORMAT:
        raise InputError(
            str(folder), expected=f"format {FORMAT}", got=index.get("format"), fix="make it again with this version"
        )
    return dict(index)


def _no_index(folder: Path, got: str) -> InputError:
    expected, fix = "an index.json that says whose text its shards hold", "restore it, or choose another folder"
    return InputError(str(folder), expected=expected, got=got, fix=fix)


def read_origin(folder: Path) -> Origin:
    """Whose text a folder holds. Raises as `index_of`."""
    index = index_of(folder)
    return Origin(**{field.name: index[field.name] for field in fields(Origin)})


def read_lines(file: Path, shard: int) -> list[tuple[Text, int]]:
    """A shard's sequences, each with the size of the file up to the end of its line. A last line without an end was
    never committed and is left out.

    Raises:
        InputError: a line that cannot be read.
    """
    texts, behind = [], 0
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        behind += len(line) + 1
        try:
            text = Text(**{**parse_json(line), "shard": shard})
            text.require_sound()
            texts.append((text, behind))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file}, line {number}", expected="a sequence", got=f"{line[:40]!r} ({error})",
                fix="restore the file, or delete the shard",
            ) from error  # fmt: skip
    return texts


def shard_numbers(folder: Path) -> list[int]:
    """The shards a folder has."""
    return sorted(int(file.stem.removeprefix("shard-")) for file in folder.glob("shard-*.jsonl"))


def committed(folder: Path) -> list[Text]:
    """The finished sequences of all shards; writers may be adding to them."""
    return [
        text for number in shard_numbers(folder) for text, _ in read_lines(folder / f"shard-{number}.jsonl", number)
    ]


def note_source(folder: Path, source: Mapping[str, Any]) -> None:
    """Remember in the index what a run added, and how."""
    with FileLock(folder / ".index.lock"):
        index = index_of(folder)
        write_json(folder / "index.json", {**index, "sources": [*index["sources"], source]})


def require_disk(folder: Path, needed: int, what: str, fix: str) -> int:
    """Bytes free where a folder is (or will be).

    Raises:
        InputError: fewer than needed.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            str(folder), expected=f"{needed / 2**30:.2f} GiB of disk for {what}", got=f"{free / 2**30:.2f} GiB free",
            fix=fix,
        )  # fmt: skip
    return free


def file_suffix(feature: str) -> str:
    """`layer:8` -> `layer-8`: a colon is no character for file names everywhere."""
    return feature.replace(":", "-")


def is_validation(key: str) -> bool:
    return int(key[:8], 16) < VALIDATION_SHARE * 2**32


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(target: TargetModel) -> str:
    """Of a model's weights: names, shapes and a few values of each, rounded to bfloat16, so that a model is the same in
    whatever precision it was loaded."""
    state = hashlib.sha256()
    for name, weight in target.model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(len(flat) // 16, 1)][:16].to(torch.bfloat16).cpu()
        state.update(f"{name} {tuple(weight.shape)} {some.view(torch.uint16).tolist()}".encode())
    return state.hexdigest()[:16]
