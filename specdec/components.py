"""Build a drafter, verifier or rule by its name in `conf/`, without Hydra.

The class that a YAML names is imported when it is built, so that `specdec` itself imports no drafter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from specdec.errors import InputError
from specdec.files.checked import read_yaml
from specdec.options import UNSET, advice, check_signature, require_known

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
OURS = ("drafters", "verifiers", "specdec")


def build(group: str, choice: str, options: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Build the component that `conf/GROUP/CHOICE.yaml` describes.

    Args:
        group: drafter, verifier, acceptance or adaptive.
        choice: name of a YAML file.
        options: values that replace those of the file.
        arguments: objects passed to the component besides its options.

    Raises:
        InputError: no such file, an unknown option, or an option without a value.
    """
    config = described(group, choice)
    require_known(list(options or {}), [key for key in config if not key.startswith("_")], f"{group}={choice}")
    return _made({**config, **(options or {})}, group, arguments)


def described(group: str, choice: str) -> dict[str, Any]:
    """Return the options of `conf/GROUP/CHOICE.yaml` with their values, including those of its defaults list.

    Raises:
        InputError: no such file.
    """
    files = {file.stem: file for file in sorted((CONF / group).glob("*.yaml"))}
    if choice not in files:
        raise InputError(
            group, expected=f"one of {', '.join(files)}", got=repr(choice), fix=advice(choice, list(files))
        )
    own: dict[str, Any] = read_yaml(files[choice])
    config: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            config |= described(group, entry)
        elif isinstance(entry, dict):  # "/drafter@drafters.first: ngram" nests one file in another
            ((where, nested),) = entry.items()
            source, _, place = where.lstrip("/").partition("@")
            *parents, last = place.split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = described(source, nested)
    return config | own


def require_ours(package: ModuleType) -> None:
    """Refuse a package of another project that has the same name as one of ours.

    Raises:
        ImportError: the package is not in the same folder as `specdec`.
    """
    found = Path(str(package.__file__)).resolve().parents[1]
    if found != ROOT:
        raise ImportError(
            f"the package '{package.__name__}' was imported from {found}, expected {ROOT}; "
            f"run from the project's root, and `pip uninstall {package.__name__}` if another project installed it"
        )


def _made(node: Any, where: str, arguments: Mapping[str, Any]) -> Any:
    """Build a node of a config, nested components first."""
    if isinstance(node, list):
        return [_made(part, where, {}) for part in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _made(part, f"{where}.{key}", {}) for key, part in node.items() if not key.startswith("_")}
    if "_target_" not in node:
        return plain
    if missing := [key for key, value in plain.items() if value == UNSET]:
        raise InputError(where, expected=f"a value for {', '.join(missing)}", got="none", fix="pass it as an option")
    path, _, name = node["_target_"].rpartition(".")
    top = path.partition(".")[0]
    if top not in OURS:
        raise InputError(
            where, expected=f"a component of {', '.join(OURS)}", got=node["_target_"], fix="build it yourself"
        )
    require_ours(import_module(top))
    component = getattr(import_module(path), name)
    given = {key: part for key, part in node.items() if not key.startswith("_")}
    nested = [key for key, part in given.items() if isinstance(part, dict) and "_target_" in part]
    check_signature(component, given | dict.fromkeys(nested, UNSET), where)
    return partial(component, **plain) if node.get("_partial_") else component(**plain, **arguments)
