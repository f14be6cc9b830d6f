"""Decide what a config may build. `_target_` names a component, which is one of the kinds below.

A config may come from anyone: an experiment from a colleague, a folder given with `--config-dir`. So a name in it is
called only if it is

- a class under `drafters.`, `verifiers.` or `specdec.` with the methods of a kind in `KINDS`,
- one of the functions in `LOADERS`,
- a `LogitsProcessor` of transformers, or
- below a name that the user gave on the command line: `allow_targets=[my_package.]`.

Everything else is refused before it is imported. SECURITY.md describes what this guarantees.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hydra.utils
from omegaconf import DictConfig, ListConfig, OmegaConf
from transformers import LogitsProcessor

from specdec.components import CONF, OURS
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.errors import InputError
from specdec.measure.rivals import Reference
from specdec.options import UNSET, check_signature
from specdec.runs.log import Tracker
from specdec.training.recipe import Recipe

ALLOW, TARGET = "allow_targets", "_target_"
KEYWORDS = (TARGET, "_args_", "_partial_", "_recursive_", "_convert_")
KINDS = (Drafter, Verifier, AcceptanceRule, Recipe, Tracker, Reference)
LOADERS = (
    "specdec.model.load.load_hub",
    "specdec.model.load.load_embedded",
    "specdec.model.load.load_gguf",
    "specdec.model.load.load_tiny",
    "specdec.hardware.random_weights.load_random",
    "specdec.prompts.sets.builtin",
    "specdec.prompts.sets.jsonl",
    "specdec.prompts.sets.dataset",
    "specdec.hardware.machine.from_figures",
    "specdec.hardware.machine.Machine.from_profile",
)

Component = Callable[..., Any]


def instantiate(node: DictConfig | ListConfig | None, **arguments: Any) -> Any:
    """Build the component that a part of the config names, with its nested parts.

    It works as `hydra.utils.instantiate`, but for components only.

    Args:
        node: a part of the composed config. The root of the config holds `allow_targets`.
        arguments: passed to the component in addition to those of the config.

    Raises:
        InputError: a name that is no component.
    """
    if node is None:
        return None
    allowed = allowed_by(node)
    key = node._get_full_key("") or ""
    plain = OmegaConf.to_container(node, resolve=True)
    for where, found in targets(plain, key):
        component(found, where, allowed)
        if granted(found, allowed):
            print(f"{ALLOW}: {where} calls {found}", file=sys.stderr)
    refuse_escapes(plain, key)
    return hydra.utils.instantiate(node, **arguments)


def check_options(node: DictConfig) -> None:
    """Check the options of components in a config against their signatures, before any is built.

    Missing options (`???`) and options of components that only the user allows are not checked.

    Raises:
        InputError: a name that is no component, an unknown option, a value of another type, NaN or infinity.
    """
    _check(OmegaConf.to_container(node, resolve=True), str(node._get_full_key("") or ""), allowed_by(node))


def _check(plain: Any, where: str, allowed: Sequence[str]) -> None:
    if isinstance(plain, list):
        for place, part in enumerate(plain):
            _check(part, f"{where}[{place}]", allowed)
    elif isinstance(plain, dict):
        for key, part in plain.items():
            _check(part, f"{where}.{key}".lstrip("."), allowed)
        if TARGET in plain:
            made = component(plain[TARGET], f"{where}.{TARGET}", allowed)
            if is_component(made):
                options = {key: part for key, part in plain.items() if key not in KEYWORDS}
                nested = [key for key, part in options.items() if isinstance(part, dict) and TARGET in part]
                check_signature(made, options | dict.fromkeys(nested, UNSET), where)


def choice_of(group: str, choice: str, option: str) -> DictConfig:
    """Return the content of a file of `conf/` that an option names.

    Args:
        group: the folder.
        choice: name of the file without `.yaml`; it cannot lead out of the folder.
        option: name used in error messages.

    Raises:
        InputError: the file does not exist.
    """
    files = {file.stem: file for file in (CONF / group).glob("*.yaml")}
    if choice not in files:
        expected = f"one of {', '.join(sorted(files))}"
        raise InputError(option, expected=expected, got=repr(choice), fix="check the spelling")
    whole = OmegaConf.create({group: OmegaConf.load(files[choice])})  # with a new root, which allows nothing
    node: DictConfig = whole[group]
    return node


def allowed_by(node: DictConfig | ListConfig) -> Sequence[str]:
    """Return the prefixes of names that the command line allows. `composition.py` puts them into the config's root."""
    root = node._get_root()
    return list(root.get(ALLOW) or ()) if isinstance(root, DictConfig) else []


def component(name: object, where: str, allowed: Sequence[str] = ()) -> Component:
    """Return the class or function with a name.

    Args:
        name: a dotted name, as in `_target_`.
        where: key of the name, for error messages.
        allowed: prefixes of names that the user allows.

    Raises:
        InputError: the name is no component, or does not exist.
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        fix = f"name a class under {', '.join(OURS)}"
        raise InputError(where, expected="the dotted name of a component", got=repr(name), fix=fix)
    root = name.partition(".")[0]
    if not granted(name, allowed) and root not in (*OURS, "transformers"):
        raise _refused(name, where)  # before anything is imported
    try:
        found = located(name)
    except ImportError as error:
        got, fix = f"{name!r} ({error})", "check the spelling"
        raise InputError(where, expected="a component that exists", got=got, fix=fix) from error
    home = str(getattr(found, "__module__", "")).partition(".")[0]
    if home != root or not (granted(name, allowed) or is_component(found)):
        raise _refused(name, where)
    made: Component = found
    return made


def is_component(found: Any) -> bool:
    """Return whether configs may build an object without the user's permission."""
    module, name = getattr(found, "__module__", ""), getattr(found, "__qualname__", "")
    if not inspect.isclass(found):
        return f"{module}.{name}" in LOADERS
    if module.partition(".")[0] == "transformers":
        return issubclass(found, LogitsProcessor)
    work = (set(_methods(kind)) for kind in KINDS)
    return issubclass(found, LogitsProcessor) or (found not in KINDS and any(done <= set(dir(found)) for done in work))


def granted(name: str, allowed: Sequence[str]) -> bool:
    """Return whether a name is allowed: `my_package.` and `my_package` allow all names below, a full name itself."""
    return any(name == beginning or name.startswith(beginning.rstrip(".") + ".") for beginning in allowed)


def located(name: str) -> Any:
    """Return the object with a dotted name: the longest module in it, then attributes.

    Raises:
        ImportError: the object does not exist.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not (error.name and f"{name}.".startswith(f"{error.name}.")):
                raise  # the module exists, but one that it imports does not
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                raise ImportError(f"{part!r} is not in {'.'.join(parts[:end])}")
            found = getattr(found, part)
        return found
    raise ImportError(f"no module {parts[0]!r}")


def targets(plain: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield every `_target_` in a plain container, at any depth, with its key."""
    if isinstance(plain, dict):
        if TARGET in plain:
            yield f"{where}.{TARGET}".lstrip("."), plain[TARGET]
        for key, value in plain.items():
            yield from targets(value, f"{where}.{key}".lstrip("."))
    elif isinstance(plain, list):
        for place, value in enumerate(plain):
            yield from targets(value, f"{where}[{place}]")


def refuse_escapes(plain: Any, where: str) -> None:
    """Refuse a resolved text that OmegaConf would resolve again, because the result would not be checked.

    Raises:
        InputError: a text with `${`.
    """
    if isinstance(plain, str) and "${" in plain:
        raise InputError(
            where, expected="an interpolation that is resolved once", got=repr(plain), fix="drop the escape"
        )
    if isinstance(plain, dict):
        for key, value in plain.items():
            refuse_escapes(value, f"{where}.{key}")
    elif isinstance(plain, list):
        for place, value in enumerate(plain):
            refuse_escapes(value, f"{where}[{place}]")


def _methods(kind: type) -> list[str]:
    return [
        name for name, made in vars(kind).items() if name[0] != "_" and (callable(made) or isinstance(made, property))
    ]


def _refused(name: str, where: str) -> InputError:
    kinds = ", ".join(kind.__name__ for kind in KINDS)
    return InputError(
        where,
        expected=f"a component of this project ({kinds}, or a loader of models, prompts or hardware)",
        got=repr(name),
        fix=f"if you trust it, pass {ALLOW}=[{name.rpartition('.')[0] or name}.] on the command line",
    )
