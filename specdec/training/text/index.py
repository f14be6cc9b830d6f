"""Read the index of a text folder: its origin (`index.json`), and one line per finished sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.errors import InputError
from specdec.files.checked import parse_json, read_json, require_regular
from specdec.files.durable import write_json
from specdec.training.text.texts import Origin, Text

FORMAT = 1


def index_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's index.json.

    Raises:
        InputError: there is no index, or it has another format.
    """
    try:
        index = read_json(folder / "index.json")
        if not isinstance(index, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        if shard_numbers(folder):
            raise no_index(folder, f"no readable index.json ({error})") from error
        raise InputError(
            str(folder), expected="a folder of self-distilled text", got=f"no readable index.json ({error})",
            fix="make one with experiments.self_distill",
        ) from error  # fmt: skip
    if index.get("format") != FORMAT:
        raise InputError(
            str(folder), expected=f"format {FORMAT}", got=index.get("format"), fix="make it again with this version"
        )
    return dict(index)


def no_index(folder: Path, got: str) -> InputError:
    expected, fix = "an index.json that says whose text its shards hold", "restore it, or choose another folder"
    return InputError(str(folder), expected=expected, got=got, fix=fix)


def read_origin(folder: Path) -> Origin:
    """Return the origin of a folder's text: target, weights and chat template.

    Raises:
        InputError: as in `index_of`.
    """
    index = index_of(folder)
    return Origin(**{field.name: index[field.name] for field in fields(Origin)})


def read_lines(file: Path, shard: int) -> list[tuple[Text, bytes]]:
    """Return a shard's sequences, each with its line. A last line without a newline is not committed and left out.

    Args:
        file: the shard's .jsonl file.
        shard: number of the shard.

    Raises:
        InputError: the file or a line cannot be read.
    """
    try:
        require_regular(file)
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        fix = "restore the file, or delete the shard"
        raise InputError(str(file), expected="the lines of a shard", got=str(error), fix=fix) from error
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            text = Text(**{**parse_json(line), "shard": shard})
            text.require_sound()
            texts.append((text, line + b"\n"))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file}, line {number}", expected="a sequence", got=f"{line[:40]!r} ({error})",
                fix="restore the file, or delete the shard",
            ) from error  # fmt: skip
    return texts


def shard_numbers(folder: Path) -> list[int]:
    """Return the numbers of a folder's shards, ascending."""
    return sorted(int(file.stem.removeprefix("shard-")) for file in folder.glob("shard-*.jsonl"))


def committed(folder: Path) -> list[Text]:
    """Return the finished sequences of all shards. Writers may be appending to them meanwhile."""
    return [
        text for number in shard_numbers(folder) for text, _ in read_lines(folder / f"shard-{number}.jsonl", number)
    ]


def note_source(folder: Path, source: Mapping[str, Any]) -> None:
    """Append to the index how a run made the text it added."""
    with FileLock(folder / ".index.lock"):
        index = index_of(folder)
        write_json(folder / "index.json", {**index, "sources": [*index["sources"], source]})
