"""The fast products: the same numbers, the same bits for any number of rows, and a clean way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from specdec.errors import InputError
from specdec.models import load_tiny
from specdec.runtime import choose_runtime
from specdec.runtime.build import BuildError, load_library
from specdec.runtime.few_rows import MAX_ROWS, FewRowLinear
from specdec.target import TargetModel
from tests.families import FAMILIES, build

TOLERANCE = 1e-5  # fp32 sums of up to a thousand products of order one, in another order
SHAPES = [(64, 32), (576, 192), (1, 1), (7, 5), (33, 100), (1000, 3), (40, 1001)]  # (in, out), odd ones too


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_those_of_torch_for_any_rows(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(*shape, bias=bias).requires_grad_(False)
    fast = FewRowLinear(linear)
    for rows in (1, 2, 3, 5, 8, 16, MAX_ROWS + 1):
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
    for rows in range(1, MAX_ROWS + 1):
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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_stock_logits(family: str) -> None:
    prompt = [[3, 1, 4, 1, 5]]
    logits = []
    for runtime in ("fast", "stock"):
        target = TargetModel(build(family), name=family, runtime=runtime)
        logits.append(target.prefill(target.new_cache(1, 8), prompt).logits)
    torch.testing.assert_close(*logits, atol=5e-5, rtol=1e-4)


def test_weights_are_shared_and_the_stock_modules_come_back() -> None:
    target = load_tiny(device="cpu", runtime="fast")
    layer = target.model.model.layers[0].mlp
    fast = layer.up_proj
    assert isinstance(fast, FewRowLinear)
    with target.stock():
        assert type(layer.up_proj) is torch.nn.Linear
        assert layer.up_proj.weight is fast.weight
    assert layer.up_proj is fast


@torch.inference_mode()
def test_verifying_and_decoding_agree_bit_for_bit_in_the_products() -> None:
    target = load_tiny(device="cpu", runtime="fast")
    product = target.model.lm_head
    hidden = torch.randn(1, 9, 64)
    assert torch.equal(product(hidden)[:, 4:5], product(hidden[:, 4:5]))


def test_without_a_compiler_auto_goes_on_and_fast_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel() -> None:
        raise BuildError("no C++ compiler was found (install g++ or set CXX)")

    monkeypatch.setattr("specdec.runtime.fast.kernel", no_kernel)
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
    assert list((tmp_path / "kernels").iterdir()) == []  # nothing half-built stays
