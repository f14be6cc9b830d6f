"""Compiled code reads nothing that it was not given: what does not fit goes to torch, which says why."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from specdec.model.block import Block
from specdec.model.cache import TreeCache
from specdec.model.load import load_tiny
from specdec.model.runtime.few_rows import FewRowLinear
from specdec.model.runtime.packed import PackedLinear
from specdec.model.runtime.storage import rounded
from specdec.model.runtime.vocabulary import argmaxes, entropies, mass, masses
from tests.support.families import build


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(40, 7).requires_grad_(False)


def packed_linear(plain: nn.Linear, form: str) -> PackedLinear:
    return PackedLinear(rounded(plain.weight, form), plain.bias)


def fast_and_torch(made: str) -> tuple[nn.Module, nn.Module]:
    plain = linear()
    if made == "few rows":
        return FewRowLinear(plain), plain
    quantised = packed_linear(plain, made)
    stock = linear()
    stock.weight.copy_(quantised.weight)
    return quantised, stock


MADE = ["few rows", "bf16", "int8", "int4"]
INPUTS: dict[str, Callable[[], Tensor]] = {
    "too narrow": lambda: torch.ones(2, 8),
    "too wide": lambda: torch.ones(2, 41),
    "double": lambda: torch.ones(2, 40, dtype=torch.float64),
    "half": lambda: torch.ones(2, 40, dtype=torch.bfloat16),
    "whole numbers": lambda: torch.ones(2, 40, dtype=torch.int64),
    "a number": lambda: torch.ones(()),
    "nowhere": lambda: torch.ones(2, 8, device="meta"),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("given", INPUTS)
@torch.inference_mode()
def test_a_product_raises_what_torch_raises(made: str, given: str) -> None:
    fast, plain = fast_and_torch(made)
    errors = []
    for module in (plain, fast):
        with pytest.raises(Exception) as error:  # noqa: PT011  (whatever torch raises)
            type(module).forward(module, INPUTS[given]()) if module is plain else unchecked(module)(INPUTS[given]())
        errors.append(type(error.value))
    assert errors[0] is errors[1]


def unchecked(module: Any, method: str = "forward") -> Callable[..., Any]:
    """A method without the tests' run-time type checks, which would speak first."""
    function = getattr(type(module), method)
    return (getattr(function, "__wrapped__", function)).__get__(module)


def unchecked_block(*fields: Any) -> Block:
    """A block without the tests' run-time checks of its shapes."""
    block = object.__new__(Block)
    names = ("tokens", "positions", "mask", "logits_at")
    vars(block).update(zip_longest(names, fields))
    return block


@pytest.mark.parametrize("made", MADE)
@torch.inference_mode()
def test_inputs_that_torch_takes_are_taken(made: str) -> None:
    fast, plain = fast_and_torch(made)
    x = torch.randn(40, 3)
    for given in (
        x.T,
        x.T[::2],
        torch.empty(0, 40),
        torch.randn(2, 3, 40)[:, 1:],
        torch.randn(40),
        x.T.expand(2, 3, 40),
    ):
        torch.testing.assert_close(fast(given), plain(given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("made", MADE)
@torch.inference_mode()
def test_what_is_not_the_memory_it_seems_is_left_to_torch(made: str) -> None:
    fast, plain = fast_and_torch(made)
    x = torch.randn(3, 40)
    for given in (torch._neg_view(x), x.to_sparse(), torch.view_as_complex(torch.randn(3, 40, 2)).conj().imag):
        torch.testing.assert_close(unchecked(fast)(given), plain(given), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_that_changed_after_wrapping_are_the_ones_that_count() -> None:
    x = torch.randn(2, 40)
    changes: list[Callable[[Any], object]] = [
        lambda m: setattr(m, "weight", nn.Parameter(torch.randn(7, 40))),
        lambda m: setattr(m, "weight", nn.Parameter(torch.randn(3, 40))) or setattr(m, "bias", None),
        lambda m: setattr(m, "weight", nn.Parameter(torch.randn(40, 7).T)),
        lambda m: setattr(m.weight, "data", torch.randn(7, 40)),
        lambda m: setattr(m, "bias", nn.Parameter(torch.randn(7))),
        lambda m: setattr(m, "bias", None),
    ]
    for change in changes:
        plain, fast = linear(), FewRowLinear(linear())
        change(fast)
        plain.weight, plain.bias = fast.weight, fast.bias
        torch.testing.assert_close(fast(x), plain(x))
    halved = FewRowLinear(linear()).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        halved(x)
    quantised = packed_linear(linear(), "int8")
    before = quantised(x)
    quantised.codes, quantised.scale = quantised.codes.clone(), quantised.scale * 2
    torch.testing.assert_close(quantised(x) - quantised.bias, 2 * (before - quantised.bias))
    with pytest.raises(RuntimeError, match="packed as int8 have been moved, or converted to another dtype"):
        quantised.to(torch.bfloat16)(x)


@pytest.fixture
def mesh(tmp_path: Any) -> Any:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_distributed_tensors_are_left_to_torch(mesh: Any) -> None:
    fast, plain = FewRowLinear(linear()), linear()
    x = torch.randn(2, 40)
    shared = DTensor.from_local(x, mesh)
    errors = []
    for module in (plain, fast):  # a DTensor with a plain weight: torch refuses to mix them
        with pytest.raises(RuntimeError) as error:
            unchecked(module)(shared)
        errors.append(str(error.value)[:40])
    assert errors[0] == errors[1]
    plain.weight = nn.Parameter(DTensor.from_local(plain.weight, mesh))
    assert not FewRowLinear.covers(plain)


@torch.inference_mode()
def test_the_fused_layers_refuse_what_they_would_read_beyond() -> None:
    target = load_tiny(device="cpu", runtime="fast")
    fused = target.fused
    assert fused is not None
    other = TreeCache([(2, 8, 8)] * 2, 1, 16, torch.float32, torch.device("cpu"))
    short = TreeCache(target.kv_shapes[:1], 1, 16, torch.float32, torch.device("cpu"))
    low = TreeCache(target.kv_shapes, 1, 16, torch.bfloat16, torch.device("cpu"))
    good, tokens, at = target.new_cache(1, 4), torch.tensor([[3, 4]]), torch.arange(2)[None]
    unchecked_forward = unchecked(fused)

    def forward(cache: TreeCache, *fields: Any, **options: Any) -> Any:
        return unchecked_forward(cache, unchecked_block(*fields), **options)

    for cache in (other, short, low, target.new_cache(2, 4), target.new_cache(1, 1)):
        with pytest.raises(RuntimeError, match=r"cache|cannot go through"):
            forward(cache, tokens, at, None, None)
    for wrong in (torch.tensor([[2]]), torch.tensor([[-1]]), torch.tensor([[0, 9]])):
        with pytest.raises(IndexError):
            forward(good, tokens, at, None, wrong)
    with pytest.raises(IndexError):
        forward(good, torch.tensor([[3, 512_000]]), at, None, None)
    for masks in (torch.ones(1, 2, 1, dtype=torch.bool), torch.ones(1, 2, 2)):
        with pytest.raises(RuntimeError, match="mask"):
            forward(good, tokens, at, masks, None)
    read_out = unchecked(fused, "read_out")
    for residual in (torch.ones(1, 2, 63), torch.ones(1, 2, 64, dtype=torch.float64), torch.ones(1, 2, 64).to("meta")):
        with pytest.raises(RuntimeError, match="residual"):
            forward(good, tokens, at, None, None, residual=residual, first=1)
        with pytest.raises(RuntimeError, match="residual"):
            read_out(residual)
    for first in (-1, 3):
        with pytest.raises(RuntimeError, match=f"layers {first} to 2 are not all among its 2"):
            forward(good, tokens, at, None, None, first=first, residual=torch.ones(1, 2, 64))
        with pytest.raises(RuntimeError, match="are not all among its 2"):
            unchecked(fused, "lower")(good, unchecked_block(tokens, at), first)
    assert forward(good, tokens, at, None, None)[0].isfinite().all()


@torch.no_grad()
def test_a_model_whose_weights_moved_runs_module_by_module_with_the_new_ones() -> None:
    target = load_tiny(device="cpu", runtime="fast")
    rows, changed = [[3, 1, 4]], build("llama")
    assert target.fused is not None
    assert target.fused.covers(target.new_cache(1, 8))
    weight = target.model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data * 1.5
    cache = target.new_cache(1, 8)
    assert not target.fused.covers(cache)
    del changed
    ours = target.prefill(cache, rows).logits[0, 0]
    with target.stock() as stock:
        torch.testing.assert_close(ours, stock(torch.tensor(rows)).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_rows_of_the_vocabulary_are_read_within_their_ends() -> None:
    p, q = torch.rand(2, 50), torch.rand(2, 50)
    with pytest.raises((RuntimeError, IndexError)):
        masses(p, None, None, torch.tensor([[3], [50]]))
    with pytest.raises((RuntimeError, IndexError)):
        mass(p[0], None, 1.0, [77])
    wide = masses(p.double(), q.double(), torch.ones(2, dtype=torch.float64), None)
    torch.testing.assert_close(masses(p, q, torch.ones(2), None), wide, atol=1e-5, rtol=1e-5)
    assert argmaxes(torch.empty(0, 50)).shape == (0,)


def test_rows_of_the_vocabulary_of_other_dimensions_are_left_to_torch() -> None:
    """A view of few numbers that says it has many: whoever counts them reads far beyond."""
    p, bare = torch.rand(1, 8), [getattr(f, "__wrapped__", f) for f in (mass, masses, entropies, argmaxes)]
    one, each, entropy, best = bare
    many = p[:, None].expand(2, 100_000, 8)
    torch.testing.assert_close(each(many), many.double().sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy(many), torch.special.entr(many).double().sum(-1), atol=1e-5, rtol=1e-5)
    assert best(many).shape == (2, 100_000)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        one(many[0], None, 1.0, [])
