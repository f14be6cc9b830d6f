"""A folder of the tiny target's text, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.prompts.sets import Prompt
from specdec.training.text.self_distill import SelfDistillation
from specdec.training.text.shard import Shard
from specdec.training.text.texts import Origin

CONF = Path(__file__).parent / "conf"


def numbered(count: int) -> list[Prompt]:
    return [Prompt(f"q{i}", "test", (f"tell me number {i}",)) for i in range(count)]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tiny: TargetModel) -> Path:
    """160 prompts with answers of 40 tokens, two thirds greedy."""
    folder = tmp_path_factory.mktemp("data")
    with Shard(folder, 0, Origin.of(tiny)) as shard:
        SelfDistillation(tiny, numbered(160), StopRule(40, tiny.eos)).run(shard)
    return folder
