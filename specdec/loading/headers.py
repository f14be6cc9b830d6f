"""Names and types of the tensors that a checkpoint stores, from the headers of its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from specdec.errors import InputError

EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")


def stored_tensors(name: str, revision: str | None) -> dict[str, str]:
    """The type of each tensor of a checkpoint that lies on this machine; empty if it has other files."""
    place: dict[str, Any] = {"revision": revision, "local_files_only": True}

    def local(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **place)

    files = [SAFE_WEIGHTS_NAME]
    if (index := local(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        files = sorted({*json.loads(Path(index).read_text("utf-8"))["weight_map"].values()})
    types: dict[str, str] = {}
    for file in filter(None, map(local, files)):
        with safe_open(file, framework="pt") as tensors:
            types |= {key: tensors.get_slice(key).get_dtype() for key in [*tensors.keys()]}
    return types


def require_scales(stored: Mapping[str, str], name: str, option: str) -> None:
    """Refuse 8-bit floats whose scales are lost: `transformers` reads them as if all scales were 1.

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
