"""`python -m experiments.check_target`: its table, its file, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import check_target
from specdec.model.load import byte_tokenizer
from tests.support.commands import command
from tests.support.families import build


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    return command(check_target.main, tmp_path, monkeypatch, capsys)


def test_everything_that_was_compared_is_shown(check, tmp_path: Path) -> None:
    done = check("target=tiny", "target.device=cpu")
    assert done.status == 0
    facts = json.loads((tmp_path / "check.json").read_text("utf-8"))["target"]
    for stage in facts["differences"]:
        assert stage in done.out
    assert facts["context window"] == 4096
    assert facts["EOS"] == {"257": "<|im_end|>"}
    assert "layers 0 to 1" in done.out
    assert "258 logits, 258 tokens" in done.out


def test_a_draft_is_held_beside_it(check, tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    model = build("gemma2", vocab_size=300)
    model.generation_config.suppress_tokens, model.generation_config.guidance_scale = [3, 4], 1.5
    model.generation_config.eos_token_id = 257
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    done = check("target=tiny", "target.device=cpu", f"draft={folder}")
    assert done.status == 0
    assert "sliding_window 6" in done.out
    assert "obeyed: suppress_tokens=[3, 4]; not used: " in done.out
    assert "guidance_scale=1.5" in done.out
    assert "a soft cap" in done.out
    assert "Gemma2Attention has a softcap" in done.out
    (logits,) = (line for line in done.out.splitlines() if line.startswith("│ logits "))
    assert logits.replace("│", " ").split() == ["logits", "258", "300"]
    (same,) = (line for line in done.out.splitlines() if "same id" in line)
    assert same.replace("│", " ").split()[-2:] == ["258", "258"]


def test_bad_input_is_one_line(check) -> None:
    done = check("target=tiny", "draft=/nowhere/at/all")
    assert done.status == 2
    assert done.err.strip().splitlines()[-1].startswith("error: target.name: expected the hub id or the folder")
