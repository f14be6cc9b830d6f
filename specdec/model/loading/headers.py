"""Names and types of the tensors that a checkpoint stores, from the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.weights import tensor_types

EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")


def stored_tensors(name: str, revision: str | None) -> dict[str, str]:
    """Return the type of each tensor of a checkpoint on this machine; empty if it has other files than safetensors.

    Raises:
        OSError, ValueError: a file that cannot be read, or an index that names files elsewhere.
    """
    place: dict[str, Any] = {"revision": revision, "local_files_only": True}

    def local(file: str) -> Path | None:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **place)
        return None if found is None else Path(found)

    index = None if local(SAFE_WEIGHTS_NAME) else local(SAFE_WEIGHTS_INDEX_NAME)  # as transformers chooses
    files = [SAFE_WEIGHTS_NAME] if index is None else _shards(index)
    types: dict[str, str] = {}
    for file in filter(None, map(local, files)):
        types |= tensor_types(file)
    return types


def _shards(index: Path) -> list[str]:
    """Return the files that an index names."""
    found = read_json(index)
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(n, str) and n == Path(n).name for n in shards.values()):
        raise ValueError(f"no names of files beside it in the weight_map of {index.name}")
    return sorted({*shards.values()})


def require_scales(stored: Mapping[str, str], name: str, option: str) -> None:
    """Refuse 8-bit floats whose scales are missing, because `transformers` reads them as if all scales were 1.

    Raises:
        InputError: names the first of them.
    """
    for key, kind in stored.items():
        stem = key.removesuffix("weight")
        scales = {f"{key}_scale_inv", f"{key}_scale", f"{key}.scale", f"{stem}scale", f"{stem}scale_inv"}
        if kind in EIGHT_BIT_FLOATS and not scales & stored.keys():
            raise InputError(
                option, expected="8-bit weights with their scales", got=f"{name!r}, which has none for {key}",
                fix="download the weights again",
            )  # fmt: skip
