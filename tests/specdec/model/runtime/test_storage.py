"""Weights in the smallest storage that holds them exactly: the same numbers, the same bits, the bytes of the file."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.model.runtime.blocks import FORMATS, pack_blocks
from specdec.model.runtime.few_rows import FewRowLinear
from specdec.model.runtime.packed import Packed, PackedEmbedding, PackedLinear, packed_modules
from specdec.model.runtime.storage import exactly, pack
from specdec.model.students import new_student
from specdec.model.target import TargetModel
from specdec.training.text.texts import fingerprint
from specdec.trees.tree import TokenTree
from tests.support.families import build

FORMS = [*FORMATS, "bf16", "fp16"]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 40)  # each register tile, several of them, and panels
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # places of fp16


def raw_blocks(form: str, outputs: int, blocks: int, seed: int) -> Tensor:
    """Random bytes, but fp16 numbers that are finite, zeros of both signs among them."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (outputs, blocks, FORMATS[form].bytes), dtype=np.uint8)
    for place in HALVES[form]:
        scales = (random.standard_normal((outputs, blocks, 1)) * 0.01).astype(np.float16)
        scales[random.random(scales.shape) < 0.1] *= 0
        raw[..., place : place + 2] = scales.view(np.uint8)
    return torch.from_numpy(raw.reshape(outputs, -1))


def packed_and_widened(form: str, outputs: int, blocks: int, seed: int = 0) -> tuple[Packed, Tensor]:
    """A matrix of the format, and its values by gguf's own dequantisation (by torch for 16-bit floats)."""
    if form in FORMATS:
        raw = raw_blocks(form, outputs, blocks, seed)
        return pack_blocks(raw, form), torch.from_numpy(
            gguf.dequantize(raw.numpy(), gguf.GGMLQuantizationType[form]).reshape(outputs, -1)
        )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[form]
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(outputs, 7 * blocks + seed % 9 + 1, generator=generator).to(dtype).float()
    packed = exactly(w)
    assert packed is not None
    assert packed.form == form
    return packed, w


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@given(st.sampled_from(FORMS), st.integers(1, 40), st.integers(1, 20), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_weights_are_widened_to_the_bits_of_the_dequantisation(form: str, outputs: int, blocks: int, seed: int) -> None:
    packed, w = packed_and_widened(form, outputs, blocks, seed)
    assert same(packed.widened(), w)
    some = torch.tensor([outputs - 1, 0, outputs // 2])
    assert same(packed.widened(some), w[some])
    assert same(packed.rows(some).widened(), w[some])


@given(
    st.sampled_from(FORMS), st.integers(1, 40), st.integers(1, 20), st.sampled_from(ROWS), st.booleans(), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_products_have_the_bits_of_fp32_storage(
    form: str, outputs: int, blocks: int, rows: int, bias: bool, threads: bool
) -> None:
    torch.set_num_threads(2 if threads else 1)
    packed, w = packed_and_widened(form, outputs, blocks, rows)
    plain = nn.Linear(w.shape[1], outputs, bias=bias).requires_grad_(False)
    plain.weight.copy_(w)
    x = torch.randn(rows, w.shape[1], generator=torch.Generator().manual_seed(1))
    ours = PackedLinear(packed, plain.bias)(x)
    assert same(ours, FewRowLinear(plain)(x))
    torch.testing.assert_close(ours.double(), plain.double()(x.double()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_rows_result_does_not_depend_on_its_company(form: str) -> None:
    packed, w = packed_and_widened(form, 70, 3)
    layer, x = PackedLinear(packed), torch.randn(64, w.shape[1])
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in (*range(1, 18), 40, 64):
        assert torch.equal(layer(x[:rows]), alone[:rows])
        assert torch.equal(layer(x[-rows:]), alone[-rows:])


def test_values_that_fit_nothing_smaller_stay_in_fp32_and_blocks_that_differ_are_not_used() -> None:
    w = torch.randn(8, 64)
    assert exactly(w) is None
    raw = raw_blocks("Q8_0", 8, 2, 0)
    right = pack_blocks(raw, "Q8_0").widened()
    assert (found := exactly(right, ("Q8_0", raw))) is not None
    assert found.form == "Q8_0"
    right[3, 5] += 1e-3
    assert exactly(right, ("Q8_0", raw)) is None
    assert exactly(right[:4], ("Q8_0", raw)) is None  # another shape
    zeros = torch.zeros(4, 8)
    assert (kept := exactly(-zeros)) is not None
    assert same(kept.widened(), -zeros)  # the sign of zero too


def of_16_bits(family: str = "llama", **config: Any) -> PreTrainedModel:
    """A model in fp32 whose weights are those of a bf16 checkpoint."""
    return build(family, **config).to(torch.bfloat16).float()


def target(model: PreTrainedModel, storage: str) -> TargetModel:
    pack(model, storage)
    return TargetModel(model, name="test", runtime="fast")


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gpt2", "mixtral"])
def test_a_bf16_checkpoint_gives_the_bits_of_fp32_storage(family: str) -> None:
    plain, small = (target(of_16_bits(family), storage) for storage in ("stored", "exact"))
    assert {m.form for m in packed_modules(small.model)} == {"bf16"}
    tree = TokenTree.from_rows([[4, 1, 5, 9, 2]], [[-1, 0, 0, 1, 2]])
    outs = []
    for one in (plain, small):
        cache = one.new_cache(1, 24)
        begun = one.prefill(cache, [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])
        outs.append((begun.logits, one.forward_tree(cache, tree).logits))
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0 if small.fused else 1e-5, rtol=0 if small.fused else 1e-5)
    if family != "mixtral":  # whose experts become separate products with names of their own
        assert fingerprint(plain) == fingerprint(small)


def test_no_weight_is_held_twice_and_tied_ones_are_held_once() -> None:
    model = of_16_bits("llama", tie_word_embeddings=True)
    originals = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    held = sum({p.data_ptr(): p.nbytes for p in model.parameters() if p.ndim > 1}.values())
    line = pack(model, "exact")
    gc.collect()
    assert all(ref() is None for ref in originals)
    kept = {b.data_ptr(): b.nbytes for m in packed_modules(model) for b in m.buffers()}
    assert sum(kept.values()) * 2 == held
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert embedding.codes.data_ptr() == output.codes.data_ptr()  # type: ignore[union-attr, operator]
    assert line is not None
    assert line.startswith("storage=exact: bf16 0.")
    assert "in fp32 stay LlamaRMSNorm" in line


def test_the_stock_model_has_ordinary_weights_and_the_packed_ones_come_back() -> None:
    small = target(of_16_bits("llama", tie_word_embeddings=True), "exact")
    before = [id(m) for m in packed_modules(small.model)]
    with small.stock() as model:
        assert not packed_modules(model)
        assert type(model.get_output_embeddings()) is nn.Linear
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert same(model.get_input_embeddings().weight.detach(), of_16_bits("llama").get_input_embeddings().weight)
    assert [id(m) for m in packed_modules(small.model)] == before
    assert small.fused is not None
    assert small.fused.reads_weights


def test_embeddings_are_looked_up_within_their_ends() -> None:
    embedding = PackedEmbedding(exactly(torch.ones(5, 8)))  # type: ignore[arg-type]
    assert embedding(torch.tensor([[0, 4]])).shape == (1, 2, 8)
    assert embedding(torch.empty(0, 3, dtype=torch.long)).shape == (0, 3, 8)
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match="index out of range for 5 rows"):
            embedding(torch.tensor([wrong]))
    with pytest.raises(RuntimeError, match="weights packed as bf16 have been moved, or converted"):
        embedding.to(torch.float64)(torch.tensor([1]))


def test_exact_changes_nothing_where_it_cannot_be_used() -> None:
    for model, options in ((build("llama"), {}), (of_16_bits().bfloat16(), {}), (of_16_bits(), {"fast": False})):
        assert pack(model, "exact", **options) is None
        assert not packed_modules(model)


def test_students_of_packed_targets_share_embedding_and_output_layer() -> None:
    small = target(of_16_bits("llama", tie_word_embeddings=True), "exact")
    student = new_student(small, [-1])
    shared = {m.codes.data_ptr() for m in packed_modules(small.model)}
    assert {m.codes.data_ptr() for m in packed_modules(student.model)} <= shared
    assert len(packed_modules(student.model)) == 2
    loss = student.model(torch.tensor([[3, 1, 4]]), use_cache=False).logits.logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())
    as_model = student.as_model(small)
    assert {m.codes.data_ptr() for m in packed_modules(as_model)} & shared
    assert all(p.dtype is torch.float32 for p in as_model.parameters())
