"""Composed configs for tests: every YAML of a group, with required values filled in for the tiny target."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from experiments.common.parts import untrained

CONF = Path(__file__).resolve().parents[2] / "conf"
REQUIRED = {"target.name": "tiny", "prompts.path": "prompts.jsonl"}


def group(name: str) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (CONF / name).glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    """The bench config with overrides; `???` becomes what `REQUIRED` says."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("bench", overrides=["target=tiny", "tracker=none", *overrides])
    for key, value in REQUIRED.items():
        node = OmegaConf.select(cfg, key.rpartition(".")[0])
        if OmegaConf.is_missing(node, key.rpartition(".")[2]):
            OmegaConf.update(cfg, key, value)
    cfg.drafter = untrained(cfg.drafter, model="tiny")
    return cfg
