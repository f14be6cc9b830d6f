"""Typed options: every entry point checks its config here before anything is loaded.

A dataclass lists the options of an entry point with their types (`specdec/options.py`). The options of a component come
from its own signature (`components.py`). So a new YAML file needs no list.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from experiments.common.components import check_options, instantiate
from experiments.common.objective import BOUNDS
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule, require_stop_strings, stop_rule
from specdec.errors import InputError
from specdec.measure.worth import FIGURES
from specdec.model.target import TargetModel
from specdec.options import Count, Seed, Share, filled

TREES = ("as_drafted", "adaptive")


@dataclass
class Generation:
    """Options as in conf/generation/default.yaml."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    batch_size: int = 1
    processors: list[Any] = field(default_factory=list)  # built by `settings`
    stop: list[str] = field(default_factory=list)


@dataclass
class References:
    """Options as in conf/reference/."""

    methods: list[Any] = field(default_factory=list)
    draft: str | None = None


@dataclass
class Settings:
    """Options as in conf/bench.yaml; `reference` as in conf/reference/."""

    generation: Generation = field(default_factory=Generation)
    tree: str = TREES[0]
    repeats: int = 1
    seed: Seed = 0
    seeds: list[Seed] = field(default_factory=list)
    report: bool = False
    record: bool = False
    validate: bool = False
    repeat_disturbed: Share = 0.0
    record_ranks: Count = 16
    reference: References = field(default_factory=References)
    objective: str = FIGURES[0]
    objective_bound: str = BOUNDS[0]
    exclusive: bool = True

    def sampling(self) -> SamplingParams:
        g = self.generation
        return SamplingParams(g.temperature, g.top_k, g.top_p, g.repetition_penalty, g.min_p, tuple(g.processors))

    def stop_rule(self, target: TargetModel) -> StopRule:
        return stop_rule(target, self.generation.max_new_tokens, self.generation.stop)


def settings(cfg: DictConfig) -> Settings:
    """Return the typed part of a composed config, checked.

    Raises:
        InputError: a value of the wrong type or out of range, or an unknown option.
    """
    options = typed(cfg, Settings)
    for name, value in (("generation.batch_size", options.generation.batch_size), ("repeats", options.repeats)):
        if value < 1:
            raise InputError(name, expected="an integer >= 1", got=repr(value), fix="use 1 or more")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError("seeds", expected="seeds that differ", got=options.seeds, fix="raise repeats instead")
    if options.tree not in TREES:
        fix = "for a static tree, pass drafter.tree"
        raise InputError("tree", expected=f"one of {', '.join(TREES)}", got=repr(options.tree), fix=fix)
    own = OmegaConf.select(cfg, "generation.processors") or []
    options.generation.processors = [instantiate(processor, _convert_="all") for processor in own]
    options.sampling()  # checks the ranges of sampling and stopping before a model is loaded
    StopRule(options.generation.max_new_tokens)
    require_stop_strings(options.generation.stop)
    return options


Options = TypeVar("Options")


def typed(cfg: DictConfig, kind: type[Options]) -> Options:
    """Return the part of a composed config that the dataclass `kind` describes. Checks the components too.

    Raises:
        InputError: a value of the wrong type, or an unknown option.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in cfg:
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and name not in names and name != "hydra" and not node._is_none():
            check_options(node)
    part = OmegaConf.masked_copy(cfg, names)
    part._set_parent(cfg)  # interpolations may refer to the whole config
    return filled(OmegaConf.to_container(part, resolve=True), kind)
