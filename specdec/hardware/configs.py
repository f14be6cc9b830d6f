"""Load model configs by name: kept in configs/, embedded, tiny, or from the hub. No weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from specdec.errors import InputError
from specdec.hardware.machine import require_known
from specdec.model.load import EMBEDDED, embedded_folder, load_tiny

KEPT = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.json"))}
HUB = {json.loads(file.read_text("utf-8"))["_name_or_path"]: file for file in KEPT.values()}


def load_config(name: str) -> PreTrainedConfig:
    """Return a model's config.

    Args:
        name: name or hub id of a kept config, `smollm2_135m`, `tiny`, a folder, or any other hub id.

    Raises:
        InputError: no such config; the message suggests the nearest name.
    """
    if name == "tiny":
        return load_tiny(device="cpu", runtime="stock").model.config
    path = str(embedded_folder()) if name == EMBEDDED else str((KEPT | HUB).get(name, name))
    if "/" not in path and not Path(path).exists():
        require_known("target", name, {**KEPT, EMBEDDED: None, "tiny": None})
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(
            "target",
            expected=f"a kept config ({', '.join(KEPT)}), {EMBEDDED}, a folder, or a hub id whose config can be had",
            got=f"{name!r} ({str(error).splitlines()[0]})",
            fix="check the spelling and your access to the hub",
        ) from error
