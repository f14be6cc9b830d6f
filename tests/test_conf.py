"""Every YAML composes and instantiates, and starts with a comment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from drafters.union import UnionDrafter
from experiments import self_distill, train
from experiments.common.components import component
from experiments.common.settings import settings
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.model.target import TargetModel
from specdec.runs.log import Tracker
from specdec.training.recipe import Recipe
from specdec.training.schedule import Schedule
from tests.support.configs import CONF, composed, group
from verifiers.acceptance.block import BlockVerification

PROTOCOLS = {"drafter": Drafter, "acceptance": AcceptanceRule, "tracker": Tracker}


@pytest.mark.parametrize(("name", "choice"), [(name, choice) for name in PROTOCOLS for choice in group(name)], ids=str)
def test_parts_instantiate_to_their_protocol(name: str, choice: str) -> None:
    cfg = composed(f"{name}={choice}")
    assert isinstance(instantiate(cfg[name], _convert_="all"), PROTOCOLS[name])


@pytest.mark.parametrize("choice", group("verifier"))
def test_verifiers_take_a_target(choice: str, tiny: TargetModel) -> None:
    assert isinstance(instantiate(composed(f"verifier={choice}").verifier, target=tiny), Verifier)


@pytest.mark.parametrize(
    ("before", "now"),
    [("drafters.union.Union", UnionDrafter), ("verifiers.acceptance.block.Block", BlockVerification)],
)
def test_configs_that_name_a_component_as_before_still_load(before: str, now: type) -> None:
    assert component(before, "_target_") is now


@pytest.mark.parametrize("choice", group("reference"))
def test_references_have_names(choice: str) -> None:
    draft = ["reference.draft=tiny"] if choice == "all" else []
    cfg = composed(f"reference={choice}", "drafter=draft_model", *draft)
    assert all(method.name for method in instantiate(cfg.reference.methods, _convert_="all"))


@pytest.mark.parametrize("choice", group("experiment"))
def test_experiments_compose(choice: str) -> None:
    assert settings(composed(f"experiment={choice}")).generation.max_new_tokens >= 1


def test_targets_instantiate(tiny: TargetModel) -> None:
    assert isinstance(instantiate(composed().target), TargetModel)
    for choice in group("target"):
        assert composed(f"target={choice}").target._target_.rpartition(".")[2].startswith("load_")


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_file_says_what_it_is(file) -> None:
    first = file.read_text("utf-8").splitlines()[0]
    assert first.startswith("# "), file


def test_self_distillation_composes() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = self_distill.checked(compose("self_distill", overrides=["folder=text", "prompts=builtin"]))
    assert options.features == ["hidden"]
    assert options.self_written.openings[0] == ""


def test_training_composes_with_the_drafters_recipe() -> None:
    search = f"hydra.searchpath=[file://{Path(__file__).parent / 'specdec' / 'training' / 'conf'}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train",
            overrides=[search, "drafter=linear", "data=text", "folder=run", "target=tiny", "+allow_targets=[tests.]"],
        )
    assert train.checked(cfg).training == Schedule(epochs=4)
    assert isinstance(instantiate(cfg.recipe, _convert_="all"), Recipe)
