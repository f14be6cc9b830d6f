"""The fast runtime: the model's numbers, the same bits for any company, and a clean way back."""

from __future__ import annotations

import gc
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.load import load_tiny
from specdec.model.runtime import choose_runtime
from specdec.model.runtime.build import BuildError, load_library
from specdec.model.runtime.few_rows import MAX_ROWS, FewRowLinear
from specdec.model.runtime.library import kernels
from specdec.model.runtime.packed import PackedLinear
from specdec.model.runtime.storage import pack, rounded
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.families import FAMILIES, build

TOLERANCE = 1e-5  # fp32 sums of up to a thousand products of order one, in another order
SHAPES = [(64, 32), (576, 192), (1, 1), (7, 5), (33, 100), (1000, 3), (40, 1001)]  # (in, out), odd ones too


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_those_of_torch_for_any_rows(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(*shape, bias=bias).requires_grad_(False)
    fast = FewRowLinear(linear)
    for rows in (1, 2, 3, 5, 8, 16, MAX_ROWS, MAX_ROWS + 1):
        x = torch.randn(rows, shape[0])
        torch.testing.assert_close(fast(x), linear(x), atol=TOLERANCE, rtol=TOLERANCE)
        assert fast(x.view(1, rows, -1)).shape == (1, rows, shape[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_rows_result_does_not_depend_on_its_company(shape: tuple[int, int], threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    fast = FewRowLinear(torch.nn.Linear(*shape).requires_grad_(False))
    x = torch.randn(MAX_ROWS, shape[0])
    alone = torch.cat([fast(row[None]) for row in x])
    for rows in (*range(1, 18), MAX_ROWS):
        assert torch.equal(fast(x[:rows]), alone[:rows])
        assert torch.equal(fast(x[-rows:]), alone[-rows:])


def test_rows_that_are_not_contiguous() -> None:
    fast = FewRowLinear(torch.nn.Linear(8, 4).requires_grad_(False))
    x = torch.randn(8, 5).t()
    assert torch.equal(fast(x), fast(x.contiguous()))


def test_gradients_go_through_torch() -> None:
    linear = torch.nn.Linear(8, 4)
    x = torch.randn(2, 8)
    FewRowLinear(linear)(x).sum().backward()
    assert linear.weight.grad is not None


FUSED = {
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
}  # the others have a feature the fused layers lack, and run module by module


def fast_target(family: str, model: PreTrainedModel | None = None) -> TargetModel:
    """The family in the fast runtime; one that is not covered says so and runs all the same."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        target = TargetModel(model or build(family), name=family, runtime="fast")
    assert (target.fused is None) == any("runs module by module" in str(w.message) for w in said)
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_stock_logits(family: str) -> None:
    fast, stock = fast_target(family), TargetModel(build(family), name=family, runtime="stock")
    if kernels().lanes() <= 8:  # the tiny heads are 8 wide
        assert (fast.fused is not None) == (family in FUSED)
    outs = [target.prefill(target.new_cache(2, 12), [[3, 1, 4, 1, 5], [9, 2]]) for target in (fast, stock)]
    torch.testing.assert_close(outs[0].logits, outs[1].logits, atol=5e-5, rtol=1e-4)
    for row, length in enumerate((5, 2)):
        torch.testing.assert_close(outs[0].hidden[row, :length], outs[1].hidden[row, :length], atol=5e-5, rtol=1e-4)


WHOLE_VECTORS = 16  # the size of heads that kernels cover on every CPU: AVX-512 has vectors of sixteen floats


def biased(model: PreTrainedModel) -> PreTrainedModel:
    """Biases, norms and rotary tables that are not at their defaults."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        (
            "llama",
            {"attention_bias": True, "mlp_bias": False, "hidden_size": 40, "head_dim": 16, "intermediate_size": 51},
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
        ("phi3", {"partial_rotary_factor": 0.5, "head_dim": 16, "hidden_size": 64}),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("qwen3", {"num_key_value_heads": 1}),
    ],
    ids=str,
)
def test_fused_layers_equal_the_model_in_odd_shapes(family: str, extra: dict[str, Any]) -> None:
    config = CONFIG_MAPPING[family](**{**FAMILIES["llama"], "head_dim": WHOLE_VECTORS, **extra})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = biased(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    target = fast_target(family, model)
    assert target.fused is not None
    text = torch.arange(1, 12)[None]
    cache = target.new_cache(1, 16)
    target.prefill(cache, text[:, :4].tolist())
    ours = target.forward(cache, Block.chain(cache, text[:, 4:])).logits
    with target.stock() as stock, torch.inference_mode():
        torch.testing.assert_close(ours, stock(text).logits[:, 4:], atol=5e-5, rtol=1e-4)


def test_a_model_that_is_wired_differently_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", head_dim=WHOLE_VECTORS)
    layer = model.model.layers[1]
    plain = type(layer).forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: plain(layer, *args, **kwargs) * 1.1)
    with pytest.warns(UserWarning, match="LlamaForCausalLM runs module by module: its layers are wired differently"):
        assert TargetModel(model, name="llama", runtime="fast").fused is None


@pytest.fixture(scope="module", params=["stored", "int8"])
def committed(request: pytest.FixtureRequest) -> tuple[TargetModel, list[list[int]], list[Tensor]]:
    """A target, two texts longer than a piece of the attention kernel, and their logits token by token."""
    target = load_tiny(device="cpu", runtime="fast", storage=request.param)
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(200, (n,), generator=generator).tolist() for n in (150, 70)]
    logits = []
    for text in texts:
        cache = target.new_cache(1, 160)
        parts = []
        for token in text:
            parts.append(target.forward(cache, Block.chain(cache, torch.tensor([[token]]))).logits[0])
            cache.advance([1])
        logits.append(torch.cat(parts))
    return target, texts, logits


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cut", [1, 3, 127, 128, 140])
def test_verifying_equals_decoding_bit_for_bit(committed: Any, cut: int, threads: int) -> None:
    """However a text gets into the model - in one go, in pieces, beside another row, or as a path of a tree - its
    logits are the same bits. So greedy texts with and without a drafter cannot part at near ties."""
    torch.set_num_threads(threads)
    target, texts, logits = committed
    cache = target.new_cache(2, 170)
    begun = target.prefill(cache, [texts[0][:cut], texts[1][: min(cut, 60)]])
    assert torch.equal(begun.logits[0, 0], logits[0][cut - 1])
    # texts as paths of a tree with wrong tokens beside them
    parents = [-1, 0, 0, 2, 2, 4, 0, 5, 7]
    path = [0, 2, 4, 5, 7, 8]
    tokens = torch.randint(200, (2, len(parents)), generator=torch.Generator().manual_seed(cut))
    for row, start in enumerate((cut, min(cut, 60))):
        tokens[row, path] = torch.tensor(texts[row][start : start + len(path)])
    tree = TokenTree.from_rows(tokens.tolist(), [parents, parents])
    verified = target.forward_tree(cache, tree).logits
    for row, start in enumerate((cut, min(cut, 60))):
        assert torch.equal(verified[row, path], logits[row][start : start + len(path)])
    cache.keep(torch.tensor([path, path]), [len(path)] * 2)
    start = cut + len(path)
    rest = torch.tensor([texts[0][start:150]] * 2)
    if rest.numel():
        rest = rest[:, : cache.capacity - max(cache.host_lengths)]
        after = target.forward(cache, Block.chain(cache, rest)).logits
        assert torch.equal(after[0], logits[0][start : start + rest.shape[1]])


def test_padding_is_not_computed(committed: Any) -> None:
    """Rows of a batch differ in length, and trees in size. What is added to make them even costs nothing: it leaves
    no trace in the cache, even between other nodes, and the results of a row are those it has alone."""
    target, texts, logits = committed
    cache = target.new_cache(3, 40)
    begun = target.prefill(cache, [texts[0][:9], texts[1][:2], texts[0][:5]])
    for row, (text, length) in enumerate(((0, 9), (1, 2), (0, 5))):
        assert torch.equal(begun.logits[row, 0], logits[text][length - 1])
        assert all(not storage[row, :, length:].any() for layer in range(2) for storage in cache.layer(layer))
    rows = [[texts[0][9], -1, texts[0][10]], [-1, -1, -1], [texts[0][5], texts[0][6], -1]]
    out = target.forward_tree(cache, TokenTree.from_rows(rows, [[-1, 0, 0], [-1, 0, 1], [-1, 0, 1]]))
    assert torch.equal(out.logits[0, [0, 2]], logits[0][9:11])
    assert torch.equal(out.logits[2, :2], logits[0][5:7])
    for padding in (out.logits[1], out.logits[0, 1], out.hidden[2, 2]):
        assert not padding.any()
    assert not cache.layer(0)[0][1, :, 2:].any()
    nothing = target.forward(cache, Block.chain(cache, torch.full((3, 1), -1)))
    assert not torch.cat([nothing.logits.flatten(), nothing.hidden.flatten()]).any()


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantised_products_equal_those_of_the_widened_weights(shape: tuple[int, int], weights: str) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(*shape).requires_grad_(False)
    quantised = PackedLinear(rounded(linear.weight, weights), linear.bias)
    largest = float(linear.weight.abs().max())
    half_step = largest * {"bf16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}[weights]
    assert float((quantised.weight - linear.weight).abs().max()) <= half_step * 1.001
    for rows in (1, 2, 5, 16, 70):
        x = torch.randn(rows, shape[0])
        expected = torch.nn.functional.linear(x, quantised.weight, linear.bias)
        with torch.no_grad():
            torch.testing.assert_close(quantised(x), expected, atol=TOLERANCE, rtol=TOLERANCE)
            assert torch.equal(quantised(x)[-1:], quantised(x[-1:]))
    x = torch.randn(2, shape[0], requires_grad=True)
    quantised(x).sum().backward()
    torch.testing.assert_close(x.grad, quantised.weight.sum(0).expand(2, -1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_the_quantised_model_is_the_target_of_all_runtimes(weights: str) -> None:
    ids = [[3, 1, 4, 1, 5]]
    logits = []
    for runtime in ("fast", "stock"):
        target = load_tiny(device="cpu", runtime=runtime, storage=weights)
        logits.append(target.prefill(target.new_cache(1, 8), ids).logits[0, 0])
        with target.stock() as stock, torch.inference_mode():
            logits.append(stock(torch.tensor(ids)).logits[0, -1])
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=1e-4)
    plain = load_tiny(device="cpu")
    assert not torch.allclose(plain.prefill(plain.new_cache(1, 8), ids).logits[0, 0], logits[0], atol=1e-4)


def test_quantising_frees_the_originals_and_fusing_copies_nothing() -> None:
    model = build("llama")
    originals = [weakref.ref(m.weight) for m in model.modules() if type(m) is torch.nn.Linear]
    before = {p.data_ptr() for p in model.parameters()}
    target = fast_target("llama", model)
    assert {p.data_ptr() for p in target.model.parameters()} == before
    del target
    plain = build("llama")
    originals = [weakref.ref(m.weight) for m in plain.modules() if type(m) is torch.nn.Linear]
    held = sum(ref().nbytes for ref in originals)
    pack(plain, "int4")
    gc.collect()
    assert all(ref() is None for ref in originals)
    kept = sum(buffer.nbytes for m in plain.modules() if isinstance(m, PackedLinear) for buffer in m.buffers())
    assert kept < held / 5


def test_bad_weights_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"target.storage: expected one of exact, stored, bf16, int8, int4, got 'int3'"
    ):
        load_tiny(storage="int3")
    with pytest.raises(InputError, match=r"expected a model in float32 on a CPU for storage=int8, got torch.bfloat16"):
        load_tiny(device="cpu", dtype="bfloat16", storage="int8")


def test_weights_are_shared_and_the_stock_modules_come_back() -> None:
    target = load_tiny(device="cpu", runtime="fast")
    layer = target.model.model.layers[0].mlp
    fast = layer.up_proj
    assert isinstance(fast, FewRowLinear)
    with target.stock():
        assert type(layer.up_proj) is torch.nn.Linear
        assert layer.up_proj.weight is fast.weight
    assert layer.up_proj is fast


def test_without_a_compiler_auto_goes_on_and_fast_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel() -> None:
        raise BuildError("no C++ compiler was found (install g++ or set CXX)")

    monkeypatch.setattr("specdec.model.runtime.fast.kernels", no_kernel)
    model = build("llama")
    with pytest.warns(UserWarning, match=r"target.runtime=auto: running without the fast products, no C\+\+ compiler"):
        assert choose_runtime("auto", model) is None
    with pytest.raises(InputError, match=r"expected what the fast products need, got no C\+\+ compiler"):
        choose_runtime("fast", model)


def test_a_dtype_the_kernel_lacks_and_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama").to(torch.bfloat16)
    assert choose_runtime("auto", model) is None
    with pytest.raises(InputError, match=r"LlamaForCausalLM in torch.bfloat16 on cpu has no fp32 nn.Linear on a CPU"):
        choose_runtime("fast", model)
    with pytest.raises(InputError, match=r"target.runtime: expected one of auto, fast, stock, got 'quick'"):
        choose_runtime("quick", model)


def test_a_broken_source_is_a_build_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++")
    with pytest.raises(BuildError, match=r"the C\+\+ compiler .* failed"):
        load_library(source)
    assert {path.suffix for path in (tmp_path / "kernels").iterdir()} == {".lock"}  # nothing half-built stays
