"""Lengths that a config names, behind which positions may be treated differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

NAMED = ("original_max_position_embeddings", "max_position_embeddings", "floor_scale")


def far_positions(config: PreTrainedConfig, window: int | None, length: int) -> list[tuple[int, int]]:
    """Return (named length, first position) of texts to try: the first position behind every length that the config
    names, and the last ones within the context window.

    Args:
        config: the model's config.
        window: longest text in tokens; None if the config gives none.
        length: tokens of the text to be placed.
    """
    text = config.get_text_config()
    if any("dynamic" in str(value) for value in (getattr(text, "rope_parameters", None) or {}).values()):
        return []  # the stock model's frequencies differ from forward to forward; `RopeByLength` follows `generate`
    named = {value for value in _values(vars(text)) if value > length}
    if window is not None and window > 2 * length:
        named.add(window - length)
    chunk = getattr(text, "attention_chunk_size", None) or 1  # texts begin with a chunk; chunks are tried on the twin
    places = [(value, -(-value // chunk) * chunk) for value in sorted(named)]
    return [(value, first) for value, first in places if window is None or first + length <= window]


def _values(options: Mapping[Any, Any]) -> Iterator[int]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _values(value)
        elif name in NAMED and isinstance(value, int | float):
            yield int(value)
