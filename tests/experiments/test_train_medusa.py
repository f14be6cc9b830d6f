"""From nothing to trained heads, through the commands a user types, on the tiny target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from drafters.medusa import Medusa
from drafters.medusa.formats import read_heads
from experiments import self_distill, train
from specdec.decoding.generate import speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from specdec.training.text.store import TextStore
from tests.support.commands import command
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

TINY = ["target=tiny", "target.device=cpu"]
ANSWER = 40


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Path:
    """The tiny target's greedy answers to the built-in prompts."""
    folder = tmp_path / "data"
    distill = command(self_distill.main, tmp_path / "distill", monkeypatch, capsys)
    answers = [f"answers.max_new_tokens={ANSWER}", "answers.temperatures=[0.0]"]
    done = distill(*TINY, f"folder={folder}", "prompts=builtin", "prompts.limit=48", "slots=16", *answers)
    assert done.status == 0, done.err
    return folder


@pytest.fixture
def trained(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., list[dict]]:
    """Train with overrides in `tmp_path/run`; returns the reports."""
    call = command(train.main, tmp_path / "run", monkeypatch, capsys)

    def run(*overrides: str) -> list[dict]:
        common = ["drafter=medusa", "drafter.tree=15", "tracker=none", f"data={data}", f"folder={tmp_path / 'run'}"]
        done = call(*TINY, *common, "training.learning_rate=3e-3", "training.seed=1", *overrides)
        assert done.status == 0, done.err
        lines = (tmp_path / "run" / "train.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def tokens_per_step(target: TargetModel, data: Path, heads: Path) -> float:
    """On prompts whose answers were trained on."""
    store = TextStore(data)
    texts = store.training[:8]
    prompts = [store.tokens(text)[: text.answers[0][0]].tolist() for text in texts]
    parts = (Medusa(str(heads), 15), TreeAttention(target), Exact(), SamplingParams(), StopRule(ANSWER))
    tau = StepMetrics.of(speculative(prompts, *parts, [[0]] * len(prompts)).steps).tokens_per_step
    assert tau is not None
    return tau


def test_heads_trained_by_the_command_draft_the_text_they_were_trained_for(
    tmp_path: Path, tiny: TargetModel, data: Path, trained: Callable[..., list[dict]]
) -> None:
    reports = trained("training.epochs=50", "recipe.heads=3", "reports.evaluate_every=1000")
    first, last = reports[0], {**reports[-2], **reports[-1]}
    assert last["tokens_per_step"] > first["tokens_per_step"]
    assert last["top1/head0"] > first["validation/top1/head0"] + 0.1
    heads = tmp_path / "run" / "drafter"
    assert read_heads(str(heads)).heads.heads == 3
    assert tokens_per_step(tiny, data, heads) > 1.5


def test_heads_and_backbone_are_trained_by_the_command(tmp_path: Path, trained: Callable[..., list[dict]]) -> None:
    reports = trained("recipe=medusa2", "training.epochs=8", "recipe.heads.heads=2")
    assert reports[-1]["validation/backbone"] < 0.5  # the new text stays near the old
    folder = tmp_path / "run" / "drafter"
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "backbone", "config.json", "medusa_lm_head.safetensors", "training.json"
    ]  # fmt: skip
    assert (folder / "backbone" / "adapter_config.json").exists()
