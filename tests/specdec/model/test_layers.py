"""Running a model in two halves gives what running it whole gives, on every architecture and in every runtime."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from specdec.errors import InputError
from specdec.model.block import Block
from specdec.model.layers import DecoderLayers, base_of
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.families import FAMILIES, build

TOLERANCE = 2e-5  # fp32 logits of order ten, through a few random layers
ROWS = [[3, 1, 4, 1, 5], [9, 2]]
TREE = TokenTree.from_rows([[6, 7, 8, 9, 10], [11, 12, 13, 14, -1]], [[-1, 0, 0, 1, 2], [-1, 0, 1, 2, -1]])


def target_of(family: str, runtime: str) -> TargetModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TargetModel(build(family), name=family, runtime=runtime)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("runtime", ["fast", "stock"])
def test_two_halves_are_a_whole_forward(family: str, runtime: str) -> None:
    """Logits and what is cached: the lower half level by level, as a drafter does, the upper half at once. The fused
    layers give the same bits."""
    target = target_of(family, runtime)
    whole, halves = target.new_cache(2, 16), target.new_cache(2, 16)
    exact = target.fused is not None and target.fused.covers(whole)
    near = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": TOLERANCE, "rtol": 1e-4}
    begun = target.prefill(whole, ROWS)
    for layers in (1, 2):
        halves.crop([0, 0])
        again = target.prefill(halves, ROWS, exit_layer=layers)
        torch.testing.assert_close(again.logits, begun.logits, **near)
        torch.testing.assert_close(again.hidden[0], begun.hidden[0], **near)
        block = Block.of_tree(halves, TREE)
        parts = [
            Block(TREE.tokens[:, a:b], block.positions[:, :b], TREE.ancestor_mask[:, a:b, :b])
            for a, b in ((0, 1), (1, 3), (3, 5))
        ]
        residual = torch.cat([target.halves.lower(halves, part, layers) for part in parts], 1)
        ours = target.halves.upper(halves, block, residual, layers)
        theirs = target.forward_tree(whole, TREE)
        torch.testing.assert_close(ours.logits, theirs.logits, **near)
        torch.testing.assert_close(ours.hidden, theirs.hidden, **near)
        for layer in range(target.depth):
            for a, b in zip(halves.layer(layer), whole.layer(layer), strict=True):
                # padding behind the shorter row's prompt is written to, and never read
                torch.testing.assert_close(a[0, :, :10], b[0, :, :10], **near)
                torch.testing.assert_close(a[1, :, :7], b[1, :, :7], **near)


@pytest.mark.parametrize("runtime", ["fast", "stock"])
def test_reading_out_is_the_models_own_norm_and_output_layer(family: str, runtime: str) -> None:
    """Return the logits of the k-th hidden state of transformers, by the modules called by name, soft caps and all."""
    target = target_of(family, runtime)
    cache, ids = target.new_cache(1, 8), torch.tensor([[3, 1, 4, 1, 5]])
    with target.stock() as model, torch.inference_mode():
        states = base_of(model)(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    name = {"gpt_neox": "final_layer_norm", "gpt2": "ln_f", "opt": "decoder.final_layer_norm"}.get(family, "norm")
    for layers in (1, 2):
        residual = target.halves.lower(cache, Block.chain(cache, ids), layers)
        torch.testing.assert_close(residual, states[layers], atol=TOLERANCE, rtol=1e-4)
        with target.stock() as model, torch.inference_mode():
            expected = model.get_output_embeddings()(base_of(model).get_submodule(name)(states[layers]))
        cap = getattr(target.model.config, "final_logit_softcapping", None)
        expected = expected if cap is None else torch.tanh(expected / cap) * cap
        torch.testing.assert_close(target.halves.read_out(residual), expected, atol=TOLERANCE, rtol=1e-4)


def test_a_part_shares_every_tensor_and_leaves_the_model_alone(family: str) -> None:
    target = target_of(family, "stock")
    addresses = {p.data_ptr() for p in target.model.parameters()}
    modules = dict(target.model.named_modules())
    for part in (target.parts.lower(target.model, 1), target.parts.upper(target.model, 1)):
        held = {p.data_ptr() for p in part.parameters()}
        assert held < addresses
    assert dict(target.model.named_modules()) == modules


def test_the_parts_of_a_model_are_what_they_say() -> None:
    target = target_of("llama", "stock")
    layers = list(target.model.model.layers)
    lower = [layer for layer in target.parts.lower(target.model, 2).layers if layer in layers]
    upper = [m for m in target.parts.upper(target.model, 2).modules() if m in layers]
    assert (lower, upper) == (layers[:2], layers[2:])


def test_layers_that_cannot_be_found_are_asked_for() -> None:
    model = build("llama")
    assert DecoderLayers(model, 3).path == "model.layers"
    assert DecoderLayers(build("gpt2"), 3).path == "transformer.h"
    model.model.more = nn.ModuleList(model.model.layers)
    with pytest.raises(InputError) as error:
        DecoderLayers(model, 3)
    assert str(error.value) == (
        "target.layer_path: expected one nn.ModuleList of 3 decoder layers, as in Llama, Qwen3, GPT-NeoX or Mixtral, "
        "got 2 such lists in LlamaForCausalLM; name it, for instance target.layer_path=model.layers"
    )
    assert DecoderLayers(model, 3, "model.layers").norm == "model.norm"
    for path, got in (("model.norm", "LlamaRMSNorm there"), ("model.nowhere", "nothing there")):
        with pytest.raises(InputError, match=rf"got {got} \('{path}'\)"):
            DecoderLayers(model, 3, path)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    target = load_tiny(device="cpu", layers=4)
    cache = target.new_cache(1, 4)
    for layers in (0, 4, -1):
        with pytest.raises(
            InputError, match=f"expected 1 to 3, fewer than the 4 layers of the target tiny, got {layers}"
        ):
            target.halves.lower(cache, Block.chain(cache, torch.tensor([[1]])), layers)
