"""Check a composed config before Hydra acts on it.

Hydra itself builds callbacks, launchers, sweepers and logging before an entry point begins, so the check must come
earlier. `allow_targets=[...]` and `provenance.diff=true` are removed from the command line here, so that no file can
set them. The composed config then contains the first.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.plugins.plugin import Plugin
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.common.components import ALLOW, granted, located, refuse_escapes, targets
from specdec.errors import InputError
from specdec.options import conform, require_known
from specdec.runs.provenance import KEEP_DIFF

DIFF = "provenance.diff"  # true: provenance.json contains the diff of uncommitted changes
BUILT_BY_HYDRA = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
SAMPLERS = "optuna.samplers."  # classes that Optuna's sweeper takes
PLUGINS = (
    "hydra",
    "hydra_plugins",
    "experiments.sweeps.callbacks",
    "experiments.common.claiming",
    SAMPLERS,
)  # where callbacks, launchers and sweepers may come from
LOGGING = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "colorlog.ColoredFormatter",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# options that run commands, or change what the processes of a run execute
COMMANDS = ("hydra.job.env_set", "hydra.launcher.setup", "hydra.launcher.python", "hydra.launcher.srun_args")
REMOTE_CODE = ("trust_remote_code", "custom_generate")
_allowed: list[str] = []  # filled while `checked_composition` is active
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass(frozen=True)
class CommandLine:
    """The command line of the user.

    Args:
        allowed: the names of `allow_targets`.
        keys: every overridden key.
    """

    allowed: Sequence[str]
    keys: Sequence[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> tuple[CommandLine, list[str]]:
        """Parse the arguments. Also returns the arguments that remain for Hydra.

        Raises:
            InputError: `allow_targets` is no list of names.
        """
        keys = [argument.partition("=")[0].lstrip("+~") for argument in arguments]
        rest = [argument for argument, key in zip(arguments, keys, strict=True) if key not in (ALLOW, DIFF)]
        if DIFF in keys:  # the environment passes it to the processes of a sweep
            diff = OverridesParser.create().parse_override(arguments[keys.index(DIFF)]).value()
            os.environ[KEEP_DIFF] = "1" if conform(diff, bool, DIFF) else "0"
        said = [argument for argument, key in zip(arguments, keys, strict=True) if key == ALLOW]
        return cls([name for argument in said for name in _names(argument)], keys), rest

    def says(self, key: str) -> bool:
        """Return whether the user set this key, or allowed it."""
        return key in self.keys or granted(key, self.allowed)


@contextmanager
def checked_composition() -> Iterator[None]:
    """Check every config that Hydra composes inside the block, including that of each job of a sweep."""
    original, arguments = ConfigLoaderImpl.load_configuration, sys.argv
    typed, rest = CommandLine.of(arguments[1:])
    hide_secrets()
    _allowed[:] = typed.allowed

    @wraps(original)
    def load(loader: ConfigLoaderImpl, config_name: str | None, *args: Any, **kwargs: Any) -> DictConfig:
        if config_name is not None and (main := loader.repository.load_config(config_name)) is not None:
            refuse_packages(main.config, typed)
        cfg = original(loader, config_name, *args, **kwargs)
        check(cfg, typed)
        if config_name is not None:
            require_known([key for key in cfg if key != "hydra"], sorted(_options(loader, config_name)), "config")
        if typed.allowed:
            with open_dict(cfg):
                cfg[ALLOW] = list(typed.allowed)
        return cfg

    ConfigLoaderImpl.load_configuration = load  # type: ignore[assignment, method-assign]  # Hydra has no hook for it
    sys.argv = [arguments[0], *rest]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = original  # type: ignore[method-assign]
        sys.argv = arguments
        _allowed.clear()


def hide_secrets() -> None:
    """Keep `${oc.env:NAME}` from reading secrets in this process."""
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def allowed_here() -> list[str]:
    """Return the names of `allow_targets`, to be sent to a launcher's processes, whose command line differs."""
    return list(_allowed)


def _options(loader: ConfigLoaderImpl, name: str) -> set[str]:
    """Return the keys of a main config: its own, its groups, and those of the main configs it extends."""
    loaded = loader.repository.load_config(name)
    if loaded is None:
        return set()
    found = {str(key) for key in loaded.config} | {"hydra"}
    for default in loaded.defaults_list or []:
        if isinstance(default, GroupDefault):
            found.add(str(default.group).split("/", 1)[0])
        elif isinstance(default, ConfigDefault) and default.path not in (None, "_self_"):
            found |= _options(loader, str(default.path))
    return found - {"hydra"}


def check(cfg: DictConfig, typed: CommandLine) -> None:
    """Refuse a config that would run code the user did not choose.

    Raises:
        InputError: names the key, and what to type to allow it.
    """
    if ALLOW in cfg:
        raise InputError(
            ALLOW, expected="it on the command line only", got="it in a file", fix="type it if you trust it"
        )
    for key, value in _switches(OmegaConf.to_container(cfg, resolve=False), ""):
        if not typed.says(key):
            fix = f"pass {key}={value} on the command line if you trust it"
            raise InputError(key, expected="it on the command line only", got=f"{value!r} in a file", fix=fix)
    whole = _resolvable(cfg)
    for name in BUILT_BY_HYDRA:
        node = OmegaConf.select(whole, f"hydra.{name}")
        plain = OmegaConf.to_container(node, resolve=True) if node is not None else {}
        refuse_escapes(plain, f"hydra.{name}")
        for where, found in targets(plain, f"hydra.{name}"):
            require_plugin(found, where, typed.allowed)
        if name.endswith("logging"):
            check_logging(plain, f"hydra.{name}", typed.allowed)
    refuse_commands(whole, typed)


def refuse_commands(cfg: DictConfig, typed: CommandLine) -> None:
    """Refuse options in `COMMANDS` that a file sets.

    Raises:
        InputError: names the option.
    """
    for key, value in _commands(cfg):
        if not typed.says(key):
            fix = f"type it, or pass {ALLOW}=[{key}] if you trust it"
            raise InputError(key, expected="it on the command line only", got=f"{value!r} in a file", fix=fix)


def require_plugin(name: object, where: str, allowed: Sequence[str]) -> None:
    """Refuse anything but a callback, launcher or sweeper of this project, of Hydra or of its plugins.

    Args:
        name: the name under `_target_`.
        where: key of the name, for error messages.
        allowed: prefixes of names that the user allows.

    Raises:
        InputError: another object, or one that does not exist.
    """
    if isinstance(name, str) and (granted(name, allowed) or granted(name, PLUGINS)):
        try:
            found = located(name)
        except ImportError as error:
            plugin = name.startswith("hydra_plugins.")
            fix = "pip install -e '.[launch]' (docs/launching.md)" if plugin else "check the spelling"
            raise InputError(where, expected="a class that exists", got=f"{name!r} ({error})", fix=fix) from error
        home = getattr(found, "__module__", "")
        if granted(name, allowed) or (
            inspect.isclass(found)
            and granted(home, PLUGINS)
            and (issubclass(found, Callback | Plugin) or granted(home, (SAMPLERS,)))
        ):
            return
    expected = "a callback, launcher or sweeper of Hydra, its plugins or this project"
    fix = f"if you trust it, pass {ALLOW}=[{str(name).rpartition('.')[0]}.] on the command line"
    raise InputError(where, expected=expected, got=repr(name), fix=fix)


def check_logging(plain: Any, where: str, allowed: Sequence[str]) -> None:
    """Check a logging config, because Python's logging calls what `()` and `class` name and imports `ext://` names.

    Raises:
        InputError: a name that is not in `LOGGING` or `STREAMS`.
    """
    if isinstance(plain, dict):
        for key, value in plain.items():
            if key in ("()", "class", ".") and not (value in LOGGING or granted(str(value), allowed)):
                fix = "choose one of these"
                raise InputError(f"{where}.{key}", expected=f"one of {', '.join(LOGGING)}", got=repr(value), fix=fix)
            check_logging(value, f"{where}.{key}", allowed)
    elif isinstance(plain, list):
        for place, value in enumerate(plain):
            check_logging(value, f"{where}[{place}]", allowed)
    elif isinstance(plain, str) and plain.startswith("ext:") and plain not in STREAMS:
        raise InputError(where, expected=" or ".join(STREAMS), got=repr(plain), fix="choose one of these")


def refuse_packages(main: Any, typed: CommandLine) -> None:
    """Refuse packages in a search path, because Hydra imports them.

    Raises:
        InputError: a main config that names a package.
    """
    for path in OmegaConf.select(main, "hydra.searchpath") or []:
        name = str(path).removeprefix("pkg://")
        if str(path).startswith("pkg:") and not (name.startswith("hydra_plugins.") or granted(name, typed.allowed)):
            fix = f"name a folder (file://...), or pass {ALLOW}=[{name}] on the command line"
            raise InputError("hydra.searchpath", expected="folders", got=repr(path), fix=fix)


def _switches(plain: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield every key that is on and lets code from a hub run. An interpolation counts as on."""
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            full = f"{where}.{key}".lstrip(".")
            if key in REMOTE_CODE and value not in (False, None):
                yield full, value
            yield from _switches(value, full)
    elif isinstance(plain, list):
        for place, value in enumerate(plain):
            yield from _switches(value, f"{where}[{place}]")


def _commands(whole: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield every key of `COMMANDS` that is set, and every environment variable except copied ones."""
    for key in COMMANDS:
        value = OmegaConf.select(whole, key)
        parts = {f"{key}.{name}": part for name, part in value.items()} if OmegaConf.is_dict(value) else {key: value}
        copied = [f"hydra.job.env_set.{name}" for name in whole.hydra.job.env_copy]
        yield from ((name, part) for name, part in parts.items() if part and name not in copied)


def _resolvable(cfg: DictConfig) -> DictConfig:
    """Return a copy with stand-ins for values that only a job knows, so that interpolations resolve."""
    whole = deepcopy(cfg)
    with open_dict(whole):
        for key, value in {"runtime.output_dir": ".", "job.num": 0, "job.id": "0"}.items():
            OmegaConf.update(whole, f"hydra.{key}", value)
    return whole


def _environment(name: str, *default: Any) -> Any:
    """Resolve `${oc.env:NAME}`, but not for secrets, because a config can send what it reads to a hub or a tracker.

    Raises:
        InputError: the variable is not set, or its name contains a word of `SECRET`.
    """
    if any(word in name.upper() for word in SECRET):
        fix = "configs may not read secrets: libraries read them from the environment themselves"
        raise InputError(f"oc.env:{name}", expected="a variable that is no secret", got=name, fix=fix)
    if name not in os.environ and not default:
        raise InputError(f"oc.env:{name}", expected="a variable that is set", got="none", fix=f"export {name}")
    return os.environ.get(name, *default)


def _names(argument: str) -> list[str]:
    override = OverridesParser.create().parse_override(argument)
    names = override.value() if not override.is_sweep_override() else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and _dotted(name) for name in names):
        fix = f"write {ALLOW}=[my_package.]"
        raise InputError(ALLOW, expected="a list of beginnings of names", got=repr(argument), fix=fix)
    return names


def _dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.removesuffix(".").split("."))
