"""GGUF files as targets: the blocks of the file are what decodes, and what cannot be read is one line."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from specdec.errors import InputError
from specdec.model.load import byte_tokenizer, load_gguf, load_hub
from specdec.model.loading.gguf import gguf_folder
from specdec.model.runtime.packed import packed_modules
from tests.specdec.model.runtime.test_storage import raw_blocks

DIM, INNER, HEADS, KV, LAYERS, VOCAB = 256, 512, 4, 2, 2, 280
SHAPES = {
    "attn_q": (DIM, DIM), "attn_k": (DIM // 2, DIM), "attn_v": (DIM // 2, DIM), "attn_output": (DIM, DIM),
    "ffn_gate": (INNER, DIM), "ffn_up": (INNER, DIM), "ffn_down": (DIM, INNER),
}  # fmt: skip
MIX = {"attn_q": "Q4_K", "attn_k": "Q4_1", "attn_v": "Q6_K", "attn_output": "Q5_K", "ffn_gate": "Q4_0", "ffn_up": "F32"}


def written(path: Path, architecture: str = "llama") -> Path:
    """A small Llama without a tokenizer, each matrix in another format."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("no_vocab")
    for add, value in (
        (writer.add_vocab_size, VOCAB), (writer.add_context_length, 128), (writer.add_embedding_length, DIM),
        (writer.add_block_count, LAYERS), (writer.add_feed_forward_length, INNER), (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV), (writer.add_rope_dimension_count, DIM // HEADS),
    ):  # fmt: skip
        add(value)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)

    def matrix(name: str, shape: tuple[int, int], form: str, seed: int) -> None:
        if form == "F32":
            writer.add_tensor(name, (random.standard_normal(shape) * 0.05).astype(np.float32))
            return
        kind = gguf.GGMLQuantizationType[form]
        raw = raw_blocks(form, shape[0], shape[1] // gguf.GGML_QUANT_SIZES[kind][0], seed).numpy()
        writer.add_tensor(name, raw, raw_dtype=kind)

    matrix("token_embd.weight", (VOCAB, DIM), "Q8_0", 1)
    writer.add_tensor("output_norm.weight", np.full(DIM, 0.5, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.full(DIM, 0.1, np.float32))
        for number, (name, shape) in enumerate(SHAPES.items()):
            matrix(f"blk.{layer}.{name}.weight", shape, MIX.get(name, "Q8_0"), 10 * layer + number + 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "home"))
    byte_tokenizer().save_pretrained(tmp_path / "words")
    return tmp_path


def test_a_file_decodes_from_its_own_blocks(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(home / "small.gguf")
    ours = load_gguf(str(file), tokenizer=str(home / "words"), device="cpu")
    assert ours.name == "small"
    forms = {m.form for m in packed_modules(ours.model)}
    assert forms == {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"}
    said = capsys.readouterr().err
    assert "Unpacking small.gguf to " in said
    assert "storage=exact: " in said
    assert "in fp32 stay FewRowLinear" not in said
    assert "Linear 0.26M, LlamaRMSNorm 0.00M" in said  # the matrix that the file has in fp32
    plain = load_hub(
        str(gguf_folder(str(file), tokenizer=False)), tokenizer=str(home / "words"), storage="stored", device="cpu"
    )
    logits = [one.prefill(one.new_cache(1, 16), [[3, 1, 4, 1, 5, 9]]).logits for one in (ours, plain)]
    assert torch.equal(*logits)
    assert "Unpacking" not in capsys.readouterr().err


def test_blocks_that_differ_from_the_weights_fall_back_and_say_so(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = gguf_folder(str(written(home / "small.gguf")), tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 1
    changed = home / "changed"
    changed.mkdir()
    for name in ("config.json", "generation_config.json", "gguf_blocks.safetensors"):
        (changed / name).write_bytes((folder / name).read_bytes())
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    target = load_hub(str(changed), tokenizer=str(home / "words"), device="cpu")
    assert "; not as in the file: model.layers.1.mlp.down_proj.weight" in capsys.readouterr().err
    assert type(target.model.model.layers[1].mlp.gate_proj).__name__ == "PackedLinear"
    assert type(target.model.model.layers[1].mlp.down_proj).__name__ == "FewRowLinear"


def test_what_cannot_be_read_is_one_line(home: Path) -> None:
    def refusal(path: Path, **options: str) -> str:
        with pytest.raises(InputError) as error:
            load_gguf(str(path), device="cpu", **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    words = {"tokenizer": str(home / "words")}
    assert "target.path: expected a GGUF file, got '" in refusal(home / "none.gguf", **words)
    assert "which is no file; check the path" in refusal(home / "none.gguf", **words)
    (home / "text.gguf").write_text("text")
    assert "got 'text.gguf', which begins with b'text'; choose another file" in refusal(home / "text.gguf", **words)
    whole = written(home / "small.gguf")
    part = home / "big-00001-of-00003.gguf"
    part.write_bytes(whole.read_bytes())
    assert "one of several parts; merge them with llama.cpp's gguf-split --merge" in refusal(part, **words)
    torn = home / "torn.gguf"
    torn.write_bytes(whole.read_bytes()[:-5000])
    assert "expected a whole GGUF file of a causal LM, got 'torn.gguf' (" in refusal(torn, **words)
    strange = written(home / "strange.gguf", "rwkv6")
    assert "GGUF model with architecture rwkv6 is not supported yet" in refusal(strange, **words)
    line = refusal(whole)
    assert "expected a GGUF file with a tokenizer, got 'small.gguf' (" in line
    assert "pass target.tokenizer=FOLDER or a hub id" in line
    assert not [f for f in (home / "home" / "targets").iterdir() if f.is_dir() and "torn" in f.name]
