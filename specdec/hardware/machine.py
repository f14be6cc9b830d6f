"""Peaks of a device, from its datasheet or measured on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from specdec.errors import InputError
from specdec.files.checked import read_json

# bytes per element; the scales of quantised weights are not counted
BYTES = {
    "float64": 8.0,
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "float8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}

PROFILE_FIX = "run python -m experiments.profile_target, and name its profile.json"

KINDS = (
    ("name", "a name", str),
    ("teraflops", "figures by dtype", Mapping),
    ("gigabytes_per_second", "a number", int | float),
    ("gigabytes", "a number", int | float),
    ("links", "figures by kind of link", Mapping),
)


@dataclass(frozen=True)
class Machine:
    """Peaks of one device. Giga and tera are powers of ten, as in datasheets.

    Args:
        name: name of the device.
        teraflops: 1e12 dense operations per second by dtype; a multiplication and an addition count as two.
        gigabytes_per_second: memory bandwidth, 1e9 bytes per second.
        gigabytes: memory size, 1e9 bytes.
        links: bandwidth to another device of the same kind, 1e9 bytes per second in one direction, by kind of link;
            empty if the device cannot be combined with others.

    Raises:
        InputError: a figure is missing, not a positive number, or of an unknown dtype.
    """

    name: str
    teraflops: Mapping[str, float]
    gigabytes_per_second: float
    gigabytes: float
    links: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.teraflops:
            raise _bad(f"{self.name}: teraflops", "figures by dtype, like {bfloat16: 312}", "none")
        for dtype in self.teraflops:
            require_known(f"{self.name}: teraflops", dtype, BYTES)
        _positive(f"{self.name}: gigabytes_per_second", self.gigabytes_per_second)
        _positive(f"{self.name}: gigabytes", self.gigabytes)
        for what, figures in (("teraflops", self.teraflops), ("links", self.links)):
            for key, figure in figures.items():
                _positive(f"{self.name}: {what}.{key}", figure)

    @classmethod
    def of(cls, figures: Mapping[str, Any], what: str = "hardware") -> Machine:
        """Return the machine described by a mapping, for example from a YAML file.

        Args:
            figures: the fields of this class by name.
            what: name used in error messages.

        Raises:
            InputError: a figure is missing or unknown, or as in the class.
        """
        known = {f.name: f for f in fields(cls)}
        for key in figures:
            require_known(what, key, known)
        for key, expected, kind in KINDS:
            value = figures.get(key, {} if key == "links" else None)
            if not isinstance(value, kind):
                raise _bad(f"{what}.{key}", expected, "none" if value is None else repr(value))
        values: dict[str, Any] = {key: dict(f) if isinstance(f, Mapping) else f for key, f in figures.items()}
        return cls(**values)

    @classmethod
    def from_profile(cls, file: Path | str) -> Machine:
        """Return the machine that `experiments.profile_target` measured, with the ceilings of one dtype.

        `gigabytes` is the host's memory, which is more than the memory of a CUDA device.

        Raises:
            InputError: no such file, or not a profile.
        """
        profile = read_profile(file)
        try:
            where, ceilings = profile["provenance"]["machine"], profile["ceilings"]
            figures = {
                "name": str((where["gpu"] or [where["cpu"]])[0]),
                "teraflops": {profile["dtype"]: ceilings["gflop_per_second"] / 1e3},
                "gigabytes_per_second": ceilings["gb_per_second"],
                "gigabytes": where["memory_gib"] * 2**30 / 1e9,
            }
        except (KeyError, TypeError, IndexError, OverflowError) as error:
            got = f"{file} ({type(error).__name__}: {error})"
            raise _bad("profile", "the machine and its ceilings in it", got, PROFILE_FIX) from error
        return cls.of(figures, "profile")

    @property
    def bytes_per_second(self) -> float:
        return self.gigabytes_per_second * 1e9

    @property
    def bytes(self) -> float:
        return self.gigabytes * 1e9

    def flops_per_second(self, dtype: str) -> float:
        """Return the operations per second in a dtype.

        Raises:
            InputError: the machine has no figure for this dtype.
        """
        require_known(f"{self.name}: compute", dtype, self.teraflops)
        return self.teraflops[dtype] * 1e12

    def link_bytes_per_second(self, link: str | None = None) -> float:
        """Return the bandwidth of a link in one direction, bytes per second; of the fastest link if None.

        Raises:
            InputError: no such link.
        """
        if link is None:
            if not self.links:
                raise _bad(f"{self.name}: links", "a link to a second device", "none", "use one device")
            return max(self.links.values()) * 1e9
        require_known(f"{self.name}: link", link, self.links)
        return self.links[link] * 1e9

    def balance(self, dtype: str) -> float:
        """Return the operations per byte above which compute, not memory, is the bound."""
        return self.flops_per_second(dtype) / self.bytes_per_second


def from_figures(**figures: Any) -> Machine:
    """Return `Machine.of(figures)`; for config files, so that an unknown key gets a suggestion."""
    return Machine.of(figures)


def read_profile(file: Path | str) -> dict[str, Any]:
    """Read a profile of `experiments.profile_target`.

    Args:
        file: `profile.json`, or the run folder that holds it.

    Raises:
        InputError: no such file, or not a profile.
    """
    path = Path(file)
    path = path / "profile.json" if path.is_dir() else path
    try:
        profile = read_json(path)
    except (OSError, ValueError) as error:
        raise _bad(
            "profile", "a profile.json of experiments.profile_target", f"{file} ({error})", PROFILE_FIX
        ) from error
    missing = {"target", "dtype", "ceilings", "points", "provenance"} - set(
        profile if isinstance(profile, dict) else ()
    )
    if missing:
        raise _bad("profile", f"{', '.join(sorted(missing))} in it", f"{file} without", PROFILE_FIX)
    return dict(profile)


def require_known(what: str, key: str, known: Mapping[str, Any]) -> None:
    """Refuse an unknown key, and suggest the nearest known one.

    Args:
        what: name used in error messages.
        key: the key to look up.
        known: mapping with all valid keys.

    Raises:
        InputError: `key` is not in `known`.
    """
    if key not in known:
        near = get_close_matches(str(key), list(known), n=1, cutoff=0.4)
        fix = f"did you mean {near[0]}?" if near else "check the spelling"
        raise _bad(what, f"one of {', '.join(known) or 'none'}", repr(key), fix)


def _positive(what: str, figure: object) -> None:
    if isinstance(figure, bool) or not isinstance(figure, int | float) or not 0 < figure < math.inf:
        raise _bad(what, "a positive number", repr(figure))


def _bad(what: str, expected: str, got: str, fix: str = "take it from the datasheet") -> InputError:
    return InputError(what, expected=expected, got=got, fix=fix)
