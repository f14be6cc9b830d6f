"""Check the types of values read from a run's files; values of another type are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from specdec.metrics import StepRecord
from specdec.options import LARGEST

Check = Callable[[Any], bool]


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _positive(value: Any) -> bool:
    return _number(value) and value >= 0


def _list(part: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(part, value))


def _by_name(part: Check = lambda value: True) -> Check:
    return lambda value: isinstance(value, dict) and all(map(part, value.values()))


def _or_null(part: Check) -> Check:
    return lambda value: value is None or part(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


RATIOS = (
    "tokens_per_step", "acceptance_length", "acceptance_rate", "draft_efficiency", "nodes_per_step",
    "tokens_per_second", "autoregressive_tokens_per_second", "speedup", "bandwidth_share",
)  # fmt: skip
SUMMARY: dict[str, Check] = {
    **dict.fromkeys(RATIOS, _or_null(_number)), **dict.fromkeys(("tokens", "steps", "prompts", "threads"), _natural),
    "acceptance_at_depth": _list(_positive), "emitted_histogram": _list(_natural), "phase_ms": _by_name(_positive),
    "speedup_ci95": _or_null(_list(_number)), "divergence": _or_null(_by_name()), "quiet": _or_null(_by_name()),
    "by_category": _by_name(),
}  # fmt: skip
PROVENANCE: dict[str, Check] = {
    "names": _by_name(), "command": _list(lambda value: True), "started": _text, "status": _text,
    "machine": _by_name(),
}  # fmt: skip
_MACHINE: dict[str, Check] = {"cpu": _or_null(_text), "gpu": _or_null(_list(_text))}
_INTEGERS = tuple(name for name, kind in get_type_hints(StepRecord).items() if kind is int)
_integers, _milliseconds = _list(lambda value: type(value) is int), _by_name(_positive)
_seconds = _by_name(_or_null(_positive))
_LISTS = tuple(name for name, kind in get_type_hints(StepRecord).items() if kind == list[int])


def sound_summary(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a summary without values of a wrong type, and the names of those values."""
    kept, wrong = _sound(found, SUMMARY)
    categories = {name: _sound(part, SUMMARY) for name, part in kept.get("by_category", {}).items()}
    if "by_category" in kept:
        kept["by_category"] = {name: part for name, (part, _) in categories.items() if part}
    return kept, [*wrong, *(f"by_category.{name}.{key}" for name, (_, keys) in categories.items() for key in keys)]


def sound_provenance(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a provenance without values of a wrong type, and the names of those values."""
    kept, wrong = _sound(found, PROVENANCE)
    if "machine" in kept:
        kept["machine"], of_machine = _sound(kept["machine"], _MACHINE)
        wrong += [f"machine.{name}" for name in of_machine]
    return kept, wrong


def is_step(line: Mapping[str, Any]) -> bool:
    """Return whether a line's values have the types of a `StepRecord`. Must be fast: it runs once per step and row."""
    return (
        all(_natural(line.get(name)) for name in (*_INTEGERS, "turn", "repeat"))
        and all(_integers(line.get(name, [])) for name in _LISTS)
        and _milliseconds(line.get("ms"))
    )


def is_generation(line: Mapping[str, Any]) -> bool:
    """Return whether a line's turn, repeat and seconds are numbers; older versions did not write all of them."""
    return all(_natural(line.get(name, 0)) for name in ("turn", "repeat")) and _seconds(line.get("seconds", {}))


def _sound(found: Any, checks: Mapping[str, Check]) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(found, Mapping):
        return {}, [""]
    wrong = [str(name) for name, value in found.items() if name in checks and not checks[name](value)]
    return {name: value for name, value in found.items() if name not in wrong}, wrong
