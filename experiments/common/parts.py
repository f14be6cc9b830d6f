"""Build parts of a run by their names, from every folder on Hydra's search path (`--config-dir DIR` adds one)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from experiments.common.components import ALLOW, allowed_by, instantiate
from experiments.common.entry import CONF
from specdec.decoding.protocols import AcceptanceRule
from specdec.errors import InputError

# replaces weights that are shipped for one target
UNTRAINED = {"corpus": "fresh", "heads": "fresh", "head": "fresh", "adapter": "plain"}
EXIT_LAYER = 1  # the tiny targets have two layers


def part(group: str, choice: str, option: str | None = None) -> DictConfig:
    """Return the config of `group=choice`.

    Args:
        group: a config group.
        choice: a name in it.
        option: name used in error messages; None uses the group.

    Raises:
        InputError: the group has no such name.
    """
    inside = GlobalHydra.instance().is_initialized()
    with nullcontext() if inside else initialize_config_dir(CONF, version_base="1.3"):
        if choice not in (names := choices(group)):
            expected = f"one of {', '.join(names)}"
            raise InputError(option or group, expected=expected, got=repr(choice), fix="check the spelling")
        config: DictConfig = compose(overrides=[f"+{group}={choice}"])[group]
    return config


def rule(choice: str) -> AcceptanceRule:
    """Return the rule of `acceptance=choice`."""
    made: AcceptanceRule = instantiate(part("acceptance", choice, "rules"))
    return made


def choices(group: str) -> list[str]:
    """Return all names in a config group, including those of plug-ins."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def untrained(drafter: DictConfig, model: Any) -> DictConfig:
    """Return a drafter's config for a small random target, with untrained weights instead of `auto`.

    Args:
        drafter: config of a drafter; drafters inside it are changed too.
        model: replaces a draft model.
    """
    root = OmegaConf.create({"drafter": OmegaConf.to_container(drafter, resolve=True), ALLOW: [*allowed_by(drafter)]})
    made: DictConfig = root.drafter
    _stand_in(made, {**UNTRAINED, "model": model})
    return made


def _stand_in(node: DictConfig, weights: dict[str, Any]) -> None:
    for key, value in list(node.items()):
        if isinstance(value, DictConfig):
            _stand_in(value, weights)
        elif key == "exit_layer":
            node[key] = EXIT_LAYER
        elif value == "auto" and key in weights:
            node[key] = weights[key]
