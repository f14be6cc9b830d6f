"""Check the types of values read from a run's files; values of another type are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from specdec.intervals import Interval
from specdec.metrics import StepRecord
from specdec.options import LARGEST

Check = Callable[[Any], bool]
Made = TypeVar("Made")
WRONG: Any = object()
Reader = Callable[[Any, str], tuple[Any, list[str]]]  # value and place -> value or WRONG, names of what was left out


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


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


_PLAIN: dict[Any, Check] = {
    int: _natural,
    float: _number,
    str: _text,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None,
}


PROVENANCE: dict[str, Check] = {
    "names": _by_name(), "command": _list(lambda value: True), "started": _text, "status": _text,
    "machine": _by_name(),
}  # fmt: skip
_MACHINE: dict[str, Check] = {"cpu": _or_null(_text), "gpu": _or_null(_list(_text))}
_INTEGERS = tuple(name for name, kind in get_type_hints(StepRecord).items() if kind is int)
_integers, _milliseconds = _list(lambda value: type(value) is int), _by_name(_positive)
_seconds = _by_name(_or_null(_positive))
_LISTS = tuple(name for name, kind in get_type_hints(StepRecord).items() if kind == list[int])


def sound(found: Any, kind: type[Made], place: str = "") -> tuple[Made, list[str]]:
    """Return a dataclass made from the values of the right type, and the names of the other values.

    Args:
        found: a JSON value; keys that are no field are ignored.
        kind: the dataclass. All its fields have defaults, which replace missing and wrong values.
        place: path of the value in its file, used in the names.
    """
    if not isinstance(found, Mapping):
        return kind(), [place or "everything"]
    made: dict[str, Any] = {}
    wrong: list[str] = []
    for name, read in _readers(kind).items():  # type: ignore[arg-type]  # a class is hashable
        if name in found:
            value, bad = read(found[name], f"{place}.{name}" if place else name)
            wrong += bad
            if value is not WRONG:
                made[name] = value
    return kind(**made), wrong


@cache
def _readers(kind: Any) -> dict[str, Reader]:
    """Return the readers of a dataclass's fields; a run's folder is read often, and type hints are slow to look at."""
    return {name: _reader(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _reader(hint: Any) -> Reader:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType and any(map(is_dataclass, inner)):
        part = _reader(next(filter(is_dataclass, inner)))
        return lambda value, place: (None, []) if value is None else part(value, place)
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value, place: sound(value, hint, place) if isinstance(value, Mapping) else (WRONG, [place])
    if origin in (list, dict) and is_dataclass(inner[-1]):
        part = _reader(inner[-1])
        return lambda value, place: _parts(value, part, place) if isinstance(value, origin) else (WRONG, [place])
    check, pair = _check_of(hint), Interval in (hint, *inner)

    def plain(value: Any, place: str) -> tuple[Any, list[str]]:
        if not check(value):
            return WRONG, [place]
        return tuple(value) if pair and value is not None else value, []

    return plain


def _parts(value: Any, read: Reader, place: str) -> tuple[Any, list[str]]:
    """Return a list or mapping of the parts that can be read, and the names of what was left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = {key: read(item, f"{place}.{key}") for key, item in items}
    wrong = [name for _, names in parts.values() for name in names]
    kept = {key: part for key, (part, _) in parts.items() if part is not WRONG}
    return kept if isinstance(value, dict) else list(kept.values()), wrong


def _check_of(hint: Any) -> Check:
    """Return the check of a type: a number, text or bool, or a list, pair or mapping of these."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, limit = _check_of(inner[0]), inner[1]
        return lambda value: base(value) and limit.holds(value)
    if origin is UnionType:
        kinds = [_check_of(part) for part in inner]
        return lambda value: any(check(value) for check in kinds)
    if origin is tuple:
        numbers = _list(_check_of(inner[0]))
        return lambda value: numbers(value) and len(value) == len(inner)
    if origin in (list, dict):
        return (_list if origin is list else _by_name)(_check_of(inner[-1]))
    return _PLAIN[hint]


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
