"""Names of a sweep's jobs: the options in which they differ, as Hydra parses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

Options = Mapping[str, str]


def parsed(overrides: Sequence[str]) -> dict[str, str]:
    """Return the value of each overridden option as text. The last override of an option counts, as in Hydra."""
    options: dict[str, str] = {}
    for line in overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([line])
        except HydraException:  # written by a Hydra with another grammar: keep the line as it is
            override = None
        if override is None or override.is_sweep_override():  # another grammar, or an override of the whole sweep
            key, _, value = line.partition("=")
        else:
            key, value = override.get_key_element(), override.get_value_element_as_str()
        options.pop(key, None)
        options[key] = value
    return options


def differing(jobs: Sequence[Options]) -> list[str]:
    """Return the options that do not have the same value in every job, in the order in which they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]


def names(jobs: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """Name each job by all options in which jobs differ; equal names get the job's number.

    Args:
        jobs: the overrides of each job, by its number.
    """
    options = {number: parsed(overrides) for number, overrides in jobs.items()}
    keys = differing(list(options.values()))
    if len(jobs) == 1:
        keys = [key for job in options.values() for key in job]
    short = {n: ", ".join(f"{key}={job[key]}" for key in keys if key in job) for n, job in options.items()}
    count = Counter(short.values())
    return {n: name if name and count[name] == 1 else f"{name} #{n}".strip() for n, name in short.items()}


def numbers(jobs: Mapping[int, Sequence[str]]) -> tuple[str, dict[int, float]] | None:
    """Return the only option in which jobs differ and its value per job, or None if it is not one numeric option."""
    options = {number: parsed(overrides) for number, overrides in jobs.items()}
    keys = differing(list(options.values()))
    if len(keys) != 1:
        return None
    try:
        return keys[0], {number: float(job[keys[0]]) for number, job in options.items()}
    except (KeyError, ValueError):
        return None
