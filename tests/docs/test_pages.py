"""The commands and code that the pages of docs/ print do what the pages say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from specdec.decoding.sampling import SamplingParams, Streams
from specdec.exactness.drafters import DrafterProof
from specdec.exactness.rules import prove_rule
from specdec.runs.log import RunLog, TrainLog, WandbTracker
from specdec.trees.tree import TokenTree
from verifiers.acceptance.traversal import Traversal
from verifiers.tree_attention import TreeAttention

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> dict[str, str]:
    """The page's code blocks by the path in their first line."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)
    return dict(found)


def module(page: str, path: str) -> dict[str, Any]:
    made = ModuleType("example")
    exec(compile(blocks(page, "python")[path], path, "exec"), made.__dict__)
    return made.__dict__


def test_the_rule_is_proven_and_its_yaml_names_it() -> None:
    rule = module("adding-a-rule.md", "my_rules/chain.py")["Chain"]()
    for finding in prove_rule(rule, quick=True):
        assert finding.passed, finding.failure
    config = yaml.safe_load(blocks("adding-a-rule.md", "yaml")["my_conf/acceptance/chain.yaml"])
    assert config == {"_target_": "my_rules.chain.Chain"}


def test_a_tree_of_the_root_alone_is_judged() -> None:
    """A text that is about to end has no room for a drafted node, whatever trees the rule is declared for."""
    rule = module("adding-a-rule.md", "my_rules/chain.py")["Chain"]()
    tree = TokenTree.from_rows([[3]], [[-1]], torch.device("cpu"))
    probs = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    verdict = rule.accept(
        tree, probs, Streams([[0]], SamplingParams(temperature=1.0), torch.device("cpu")).draws([1], Streams.ACCEPT, 1)
    )
    assert (verdict.path.tolist(), verdict.next_token.tolist()) == ([[0]], [1])


@pytest.mark.parametrize(
    ("path", "name", "options"), [("drafters/repeat.py", "Repeat", {"depth": 3}), ("drafters/guess.py", "Guess", {})]
)
def test_the_drafters_are_proven(path: str, name: str, options: dict[str, int]) -> None:
    drafter = module("adding-a-drafter.md", path)[name]
    for finding in DrafterProof(lambda _: drafter(**options), TreeAttention, Traversal(), ((3, 3),), 700).findings():
        assert finding.passed, finding.failure


def test_the_drafters_yaml_names_it() -> None:
    config = yaml.safe_load(blocks("adding-a-drafter.md", "yaml")["conf/drafter/repeat.yaml"])
    assert config == {"_target_": "drafters.repeat.Repeat", "depth": 3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_command_that_uploads_wandb_runs_finds_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single run, jobs of a sweep and a training run, in the folders of conf/."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    runs = [Path("outputs/2026-11-28/12-00-00"), *(Path(f"outputs/2026-11-28/12-30-00/{n}") for n in (0, 11))]
    for folder in runs:
        RunLog(folder, WandbTracker(), {}).finish({})
    trained = Path("runs/medusa-tiny")
    TrainLog(trained, WandbTracker(), {}).finish({})
    page = (DOCS / "wandb-board.md").read_text("utf-8")
    (command,) = re.findall(r"```\n(find .*wandb sync.*)\n```", page)
    found = subprocess.run(
        command.replace("wandb sync", "printf '%s\\n'"), shell=True, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(Path(path).parents[1] for path in found) == sorted([*runs, trained])
