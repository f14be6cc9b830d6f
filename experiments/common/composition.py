"""What Hydra composes is checked before Hydra acts on it: callbacks, launchers, sweepers and logging are built by Hydra
itself, before an entry point begins.

`allow_targets=[...]` and `provenance.diff=true` are taken off the command line here, so that no file can say them; the
composed config then holds the first.
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
from specdec.runs.log import KEEP_DIFF

DIFF = "provenance.diff"  # true: provenance.json holds the diff of uncommitted changes
BUILT_BY_HYDRA = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
SAMPLERS = "optuna.samplers."  # classes that Optuna's sweeper is given
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
# they run commands, or change what the processes of a run execute
COMMANDS = ("hydra.job.env_set", "hydra.launcher.setup", "hydra.launcher.python", "hydra.launcher.srun_args")
REMOTE_CODE = ("trust_remote_code", "custom_generate")
_allowed: list[str] = []  # while `checked_composition` lasts
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass(frozen=True)
class CommandLine:
    """What the user typed.

    Args:
        allowed: the names of `allow_targets`.
        keys: every key that is overridden.
    """

    allowed: Sequence[str]
    keys: Sequence[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> tuple[CommandLine, list[str]]:
        """Also returns the arguments that are left for Hydra.

        Raises:
            InputError: `allow_targets` is no list of names.
        """
        keys = [argument.partition("=")[0].lstrip("+~") for argument in arguments]
        rest = [argument for argument, key in zip(arguments, keys, strict=True) if key not in (ALLOW, DIFF)]
        if DIFF in keys:  # the environment carries it to the processes of a sweep
            diff = OverridesParser.create().parse_override(arguments[keys.index(DIFF)]).value()
            os.environ[KEEP_DIFF] = "1" if conform(diff, bool, DIFF) else "0"
        said = [argument for argument, key in zip(arguments, keys, strict=True) if key == ALLOW]
        return cls([name for argument in said for name in _names(argument)], keys), rest

    def says(self, key: str) -> bool:
        """Whether the user set this key, or allowed it."""
        return key in self.keys or granted(key, self.allowed)


@contextmanager
def checked_composition() -> Iterator[None]:
    """While it lasts, every config that Hydra composes is checked, that of each job of a sweep too."""
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
    """Let `${oc.env:NAME}` read no secrets in this process."""
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def allowed_here() -> list[str]:
    """Return what the user allowed with `allow_targets`: a launcher's processes have another command line."""
    return list(_allowed)


def _options(loader: ConfigLoaderImpl, name: str) -> set[str]:
    """The keys of a main config: its own, its groups, and those of the main configs it builds on."""
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
    """Refuse what would run code that the user did not ask for.

    Raises:
        InputError: names the key, and what to type if it is wanted.
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
    """Raises InputError for options in `COMMANDS` that a file sets."""
    for key, value in _commands(cfg):
        if not typed.says(key):
            fix = f"type it, or pass {ALLOW}=[{key}] if you trust it"
            raise InputError(key, expected="it on the command line only", got=f"{value!r} in a file", fix=fix)


def require_plugin(name: object, where: str, allowed: Sequence[str]) -> None:
    """Raises InputError for anything but a callback, a launcher or a sweeper of the project, of Hydra or a plugin."""
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
    """Python's logging calls whatever `()` and `class` name, and imports what `ext://` names.

    Raises:
        InputError: names other than those of `LOGGING` and `STREAMS`.
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
    """Hydra imports the packages of a search path.

    Raises:
        InputError: a main config that names one.
    """
    for path in OmegaConf.select(main, "hydra.searchpath") or []:
        name = str(path).removeprefix("pkg://")
        if str(path).startswith("pkg:") and not (name.startswith("hydra_plugins.") or granted(name, typed.allowed)):
            fix = f"name a folder (file://...), or pass {ALLOW}=[{name}] on the command line"
            raise InputError("hydra.searchpath", expected="folders", got=repr(path), fix=fix)


def _switches(plain: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every key that lets a hub's code run, and is on; an interpolation counts as on."""
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
    """Every key of `COMMANDS` that is set, each variable of the environment by itself; copies are none."""
    for key in COMMANDS:
        value = OmegaConf.select(whole, key)
        parts = {f"{key}.{name}": part for name, part in value.items()} if OmegaConf.is_dict(value) else {key: value}
        copied = [f"hydra.job.env_set.{name}" for name in whole.hydra.job.env_copy]
        yield from ((name, part) for name, part in parts.items() if part and name not in copied)


def _resolvable(cfg: DictConfig) -> DictConfig:
    """A copy in which what only a job knows has a value, so that interpolations of it resolve."""
    whole = deepcopy(cfg)
    with open_dict(whole):
        for key, value in {"runtime.output_dir": ".", "job.num": 0, "job.id": "0"}.items():
            OmegaConf.update(whole, f"hydra.{key}", value)
    return whole


def _environment(name: str, *default: Any) -> Any:
    """`${oc.env:NAME}` without secrets: what a config can read, it can send to a hub or a tracker.

    Raises:
        InputError: no such variable, or one whose name says that it is secret.
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
