"""The module: its parameters, its formula, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from drafters.medusa.drafter import MedusaProducts
from drafters.medusa.heads import MedusaHeads, fresh_heads, output_weight
from specdec.errors import InputError
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.loss.draft_vocabulary import frequent_tokens
from specdec.trees.topology import Topology
from tests.drafters.medusa.made import logits_by_hand, random_heads

CHAIN = Topology.of([[0], [0, 0], [0, 0, 0]])
SOME_TOKENS = torch.tensor([3, 5, 70, 71, 72, 200, 255])


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (4, 1), (3, 2), (2, 3)])
def test_every_block_has_parameters_of_its_own(heads: int, layers: int) -> None:
    dim = 8
    made = MedusaHeads(heads, layers, dim)
    assert sum(p.numel() for p in made.parameters()) == heads * layers * (dim * dim + dim)
    with torch.no_grad():
        made.weight[layers - 1, heads - 1] += 1
    changed = [(j, i) for j in range(layers) for i in range(heads) if bool(made.weight[j, i].any())]
    assert changed == [(layers - 1, heads - 1)]


def test_blocks_of_a_head_learn_different_things(tiny: TargetModel) -> None:
    """Tied copies would get the same gradient and stay the same."""
    made = random_heads(tiny, heads=2, layers=2)
    made(torch.randn(5, made.dim)).square().sum().backward()
    assert made.weight.grad is not None
    assert not torch.equal(made.weight.grad[0, 0], made.weight.grad[1, 0])
    assert not torch.equal(made.weight.grad[0, 0], made.weight.grad[0, 1])


@pytest.mark.parametrize("own", [False, True])
def test_fresh_heads_guess_what_the_target_does(tiny: TargetModel, own: bool) -> None:
    made = fresh_heads(tiny, 3, layers=2, own_output=own)
    out = tiny.prefill(tiny.new_cache(1, 8), [[7, 8, 9]])
    logits = MedusaProducts(made, tiny, CHAIN)(out.hidden[:, -1])
    torch.testing.assert_close(logits, out.logits.expand_as(logits))


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("vocabulary", [None, SOME_TOKENS], ids=["whole", "draft vocabulary"])
def test_the_formula(tiny: TargetModel, layers: int, own: bool, vocabulary: torch.Tensor | None) -> None:
    """Both ways of computing it, batched, against one head and one state at a time."""
    made = random_heads(tiny, 3, layers, own, vocabulary)
    hidden = torch.randn(5, made.dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        served = MedusaProducts(made, tiny, CHAIN)(hidden)
        trained = torch.stack([made(hidden)[i] @ rows.T for i, rows in enumerate(made.output_rows(tiny))], 1)
        expected = torch.stack([torch.stack([logits_by_hand(made, tiny, h, i) for i in range(3)]) for h in hidden])
    if vocabulary is not None:
        assert expected.isfinite().sum() == 5 * 3 * len(vocabulary)
        expected = expected[..., vocabulary]
    torch.testing.assert_close(served, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=1e-4)


def test_only_the_heads_the_tree_asks_for_are_computed(tiny: TargetModel) -> None:
    made = random_heads(tiny, heads=3)
    hidden = torch.randn(2, made.dim)
    two, three = (MedusaProducts(made, tiny, Topology.of([[0] * d for d in range(1, n + 1)]))(hidden) for n in (2, 3))
    assert two.shape[1] == 2
    torch.testing.assert_close(two, three[:, :2])


def test_weights_are_shared_with_what_serves_them(tiny: TargetModel) -> None:
    made = random_heads(tiny, layers=2)
    products = MedusaProducts(made, tiny, CHAIN)
    hidden = torch.randn(1, made.dim)
    before = products(hidden)
    with torch.no_grad():
        made.weight.zero_()
        made.bias.zero_()
    assert not torch.equal(products(hidden), before)
    torch.testing.assert_close(products(hidden)[:, 0], hidden @ output_weight(tiny).T, atol=1e-5, rtol=1e-5)


def test_the_most_frequent_tokens_ascending() -> None:
    assert frequent_tokens(torch.tensor([3, 0, 7, 3, 9]), 3).tolist() == [0, 2, 4]
    for rows in (0, 6):
        with pytest.raises(InputError, match=f"recipe.vocabulary: expected 1 to 5, or null for all, got {rows}"):
            frequent_tokens(torch.tensor([3, 0, 7, 3, 9]), rows)


def test_heads_of_another_target_are_refused(tiny: TargetModel) -> None:
    def refusal(heads: MedusaHeads) -> str:
        with pytest.raises(InputError) as error:
            heads.require_fits(tiny)
        return str(error.value)

    vocab = output_weight(tiny).shape[0]
    assert refusal(MedusaHeads(2, 1, 32)) == (
        "drafter.heads: expected the hidden size 64 of the target tiny, got heads of 32; "
        "use heads that were trained for tiny"
    )
    other = MedusaHeads(2, 1, 64, output=torch.zeros(2, vocab + 1, 64))
    assert f"expected the {vocab} tokens of the target tiny, got output layers of {vocab + 1}" in refusal(other)
    beyond = MedusaHeads(2, 1, 64, vocabulary=torch.tensor([1, vocab]))
    assert f"expected the {vocab} tokens of the target tiny, got token id {vocab}" in refusal(beyond)
    MedusaHeads(2, 1, 64, torch.zeros(2, 1, 64), torch.tensor([vocab - 1])).require_fits(tiny)


def test_lower_precision_targets_are_served_in_theirs() -> None:
    target = load_tiny(dtype="bfloat16", device="cpu")
    made = random_heads(target).to(torch.bfloat16)
    assert MedusaProducts(made, target, CHAIN)(torch.randn(2, 64, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert MedusaProducts(random_heads(target), target, CHAIN)(torch.randn(2, 64, dtype=torch.bfloat16)).shape[1] == 3
