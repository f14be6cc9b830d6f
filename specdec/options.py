"""Check plain values from a config, a file or the command line against type annotations.

Annotations give the type and, if nothing else checks it, the range: `repeats: Count`. Wrong values are refused, never
converted: `true` and 1.5 are not accepted for 1, nor "3" for 3. NaN and infinities are always refused.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from specdec.errors import InputError

# options: old names and new ones
RENAMED = {"weights": "storage", "targets": "goals", "layers": "layer_path", "places": "slots"}
UNSET = "???"  # marks a value in a config that must be given
LARGEST = 2**63 - 1  # largest integer of torch and numpy


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Args:
        low: lowest value, itself allowed.
        high: highest value, itself allowed.
        above: whether `low` itself is not allowed.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def side(self, value: float) -> str:
        """Return the bound that a value breaks, as text for an error message."""
        low = f"{'>' if self.above else '>='} {self.low:g}"
        if math.isfinite(self.high) and value > self.high:
            return f"<= {self.high:,.12g}"
        return low if self.high >= 2**31 - 1 else f"{low} and <= {self.high:,.12g}"


Count = Annotated[int, Range(1, 2**31 - 1)]
Natural = Annotated[int, Range(0, 2**31 - 1)]
Seed = Annotated[int, Range(0, LARGEST)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]

Made = TypeVar("Made")


def conform(value: Any, kind: Any, option: str) -> Any:
    """Return the value if it has the given type. If the type is a dataclass, make it from a mapping.

    Args:
        value: a plain value: None, bool, int, float, str, list or dict.
        kind: a type annotation; values of other classes and callables are returned unchecked.
        option: name used in error messages.

    Raises:
        InputError: the value has another type or is out of range.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        base, *limits = get_args(kind)
        made = conform(value, base, option)
        for limit in limits:
            if isinstance(limit, Range) and not limit.holds(made):
                raise _wrong(option, f"{_named(base)} {limit.side(made)}", value)
        return made
    if origin in (Union, types.UnionType):
        return _of_union(value, get_args(kind), option)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise _wrong(option, f"one of {', '.join(map(str, get_args(kind)))}", value)
    if is_dataclass(kind) and isinstance(kind, type):
        return filled(value, kind, option)
    return _of_type(value, kind, option)


def filled(values: Any, kind: type[Made], option: str = "") -> Made:
    """Return a dataclass made from a mapping.

    Args:
        values: values by field; fields with a default may be left out.
        kind: the dataclass.
        option: name of the mapping, used in error messages; "" for none.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise _wrong(option, "options by name", values)
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    require_known(values, list(known), option)
    made = {}
    for name, field in known.items():
        place = f"{option}.{name}".lstrip(".")
        if values.get(name, UNSET) != UNSET:
            made[name] = conform(values[name], hints[name], place)
        elif name in values or (field.default is MISSING and field.default_factory is MISSING):
            raise InputError(place, expected="a value", got="none", fix=f"pass {place}=...")
    return kind(**made)


def advice(name: str, known: Sequence[str]) -> str:
    """Return a hint about an unknown option: its new name, or the nearest known name."""
    if RENAMED.get(name) in known:
        return f"it is called {RENAMED[name]} now"
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "check the spelling"


def check_signature(made: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Check options against the signature of the class or function that will get them.

    Args:
        made: the class or function.
        options: values by parameter; a value that is not given yet (`UNSET`) is not checked.
        where: name of the options, used in error messages; "" for none.

    Raises:
        InputError: an unknown option, or a value of another type.
    """
    takes = inspect.signature(made).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        require_known(options, [name for name, p in takes.items() if p.kind is not p.VAR_POSITIONAL], where)
    hints = get_type_hints(made.__init__ if inspect.isclass(made) else made, include_extras=True)
    for name, value in options.items():
        if value != UNSET:
            conform(value, hints.get(name, Any), f"{where}.{name}".lstrip("."))


def require_known(names: Any, known: Sequence[str], option: str) -> None:
    """Refuse a name that is not known.

    Raises:
        InputError: a name is unknown; the message suggests the nearest known name, or the new name of a renamed option.
    """
    for name in names:
        if name not in known:
            fix = advice(str(name), known)
            expected = f"an option that exists ({', '.join(known) or 'there are none'})"
            raise InputError(option or "config", expected=expected, got=repr(name), fix=fix)


def require_finite(value: Any, option: str) -> None:
    """Refuse NaN, infinities, and integers beyond 64 bits, at any depth of lists and mappings.

    Raises:
        InputError: one was found.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(option, "a finite number", value)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise _wrong(option, "an integer of at most 64 bits", "more")
    if isinstance(value, Mapping):
        for key, part in value.items():
            require_finite(part, f"{option}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            require_finite(part, f"{option}[{place}]")


def _of_union(value: Any, kinds: Sequence[Any], option: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    errors = []
    for kind in rest:
        try:
            return conform(value, kind, option)
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise _wrong(option, " or ".join(map(_named, kinds)), value)


def _of_type(value: Any, kind: Any, option: str) -> Any:  # noqa: PLR0911, PLR0912  (one branch per type)
    require_finite(value, option)
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind in (str, Path):
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return value
        if isinstance(value, str):
            raise _wrong(option, "text", value, "write something, or null where that is allowed")
    elif kind is type(None):
        if value is None:
            return None
    elif _is_list(origin):
        if isinstance(value, list | tuple):
            part = inner[0] if inner else Any
            return [_part(v, part, f"{option}[{place}]") for place, v in enumerate(value)]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            part = inner[1] if inner else Any
            return {key: conform(v, part, f"{option}.{key}") for key, v in value.items()}
    else:
        return value
    raise _wrong(option, _named(kind), value)


def _part(value: Any, kind: Any, option: str) -> Any:
    """Return a list's element if it has the given type. Texts in lists may be empty (see `write_prompts`, openings)."""
    return value if kind is str and isinstance(value, str) else conform(value, kind, option)


def _is_list(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str


def _named(kind: Any) -> str:
    """Return the name of a type for error messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_named, inner))
    if _is_list(origin or kind):
        part = get_args(inner[0])[0] if inner and get_origin(inner[0]) is Annotated else next(iter(inner), None)
        return {int: "a list of integers", float: "a list of numbers", str: "a list of texts"}.get(
            part or object, "a list"
        )
    words: dict[Any, str] = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        Path: "text",
        type(None): "null",
    }
    return words.get(kind, "options by name")


def _wrong(option: str, expected: str, value: Any, fix: str = "change it") -> InputError:
    got = "true" if value is True else "false" if value is False else "null" if value is None else repr(value)
    return InputError(option or "config", expected=expected, got=got, fix=fix)
