"""The GGUF file holds the model's weights, is written once, and is refused for what it does not cover."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from specdec.errors import InputError
from specdec.measure.gguf_file import gguf_file
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from tests.support.families import build


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(path).tensors}


def test_the_file_holds_every_weight(tiny: TargetModel) -> None:
    stored, weights = tensors(gguf_file(tiny)), tiny.model.state_dict()
    assert len(stored) == len(weights)
    assert torch.equal(stored["output.weight"], weights["lm_head.weight"])
    assert torch.equal(stored["blk.1.ffn_down.weight"], weights["model.layers.1.mlp.down_proj.weight"])
    q, head_dim = weights["model.layers.0.self_attn.q_proj.weight"], 16
    first, second = q[: head_dim // 2], q[head_dim // 2 : head_dim]  # the halves of the first head
    assert torch.equal(stored["blk.0.attn_q.weight"][0:head_dim:2], first)
    assert torch.equal(stored["blk.0.attn_q.weight"][1:head_dim:2], second)


def test_it_is_written_once_for_the_same_weights(tiny: TargetModel) -> None:
    path = gguf_file(tiny)
    written = path.stat().st_mtime_ns
    assert gguf_file(tiny) == path
    assert path.stat().st_mtime_ns == written
    assert gguf_file(load_tiny(seed=1, device="cpu")) != path


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_file_that_was_cut_is_written_again(size: int, tiny: TargetModel) -> None:
    path = gguf_file(tiny)
    content = path.read_bytes()
    path.write_bytes(content[:size])
    assert gguf_file(tiny).read_bytes() == content


REFUSED = [
    (lambda: TargetModel(build("gpt2"), name="g"), r"GPT2LMHeadModel"),
    (lambda: TargetModel(build("mixtral"), name="g"), r"MixtralForCausalLM"),
    (lambda: load_tiny(dtype="bfloat16", device="cpu"), r"weights in torch.bfloat16"),
]


@pytest.mark.parametrize(("load", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_other_models_are_refused_in_one_line(load, why: str) -> None:
    with pytest.raises(
        InputError, match=rf"llama.cpp: expected a Llama in fp32 .*, got .*{why}.*; leave llama.cpp out"
    ):
        gguf_file(load())
