"""The command as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drafters.medusa.formats import read_heads, write_official
from experiments import convert_heads
from specdec.model.target import TargetModel
from tests.drafters.medusa.made import random_heads
from tests.support.commands import Done, command


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    return command(convert_heads.main, tmp_path / "run", monkeypatch, capsys)


def test_official_heads_become_vllms_and_every_tensor_is_reported(
    tmp_path: Path, tiny: TargetModel, convert: Callable[..., Done]
) -> None:
    made = random_heads(tiny, 2)
    write_official(made, tmp_path / "official", "tiny", torch.float32)
    config = tmp_path / "official" / "config.json"
    config.write_text(config.read_text().replace('"medusa_num_heads": 2', '"medusa_num_heads": 5'))
    done = convert(f"heads={tmp_path / 'official'}", "to=vllm", f"output={tmp_path / 'vllm'}", "target=tiny")
    assert done.status == 0, done.err
    assert "0.0.linear.weight" in done.out
    assert "head 1 block 0 bias" in done.out
    assert "config.json says medusa_num_heads = 5, the weights say 2: the weights are believed" in done.err
    assert torch.equal(read_heads(str(tmp_path / "vllm")).heads.weight, made.weight)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["mapped"]) == 4
    assert summary["written"][-1] == "lm_heads.0.weight"


def test_what_cannot_be_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, tiny: TargetModel, convert: Callable[..., Done]
) -> None:
    write_official(random_heads(tiny, 2), tmp_path / "official", "tiny")
    heads, output = f"heads={tmp_path / 'official'}", f"output={tmp_path / 'new'}"
    for arguments, message in (
        ((heads, output, "to=vllm"), "error: target: expected heads with whole output layers of their own, got these"),
        ((heads, output, "to=gguf"), "error: to: expected official or vllm, got 'gguf'; choose one"),
        ((heads, output, "dtype=int8"), "error: target.dtype: expected float32, bfloat16, float16"),
        ((heads, f"output={tmp_path / 'official'}"), "error: output: expected an empty folder, or none, got"),
        ((f"heads={tmp_path / 'new'}", output), "error: heads: expected a folder, a file or a hub id, got '"),
        ((output,), "error: heads: expected a value, got none; pass heads=..."),
    ):
        done = convert(*arguments)
        assert done.status == 2
        assert done.err.startswith(message), done.err
        assert done.err.count("\n") == 1
        assert not (tmp_path / "new").exists()
