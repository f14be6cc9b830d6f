"""Whole models on kernel=tree_flash, in Triton's interpreter: the texts of the dense kernel."""

from __future__ import annotations

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from drafters.ngram import Ngram
from specdec.decoding.generate import speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.attention.registry import choose_kernel
from specdec.model.attention.tree_flash import TreeFlash
from specdec.model.proof.serving import served
from specdec.model.target import TargetModel
from tests.specdec.model.test_target import TOLERANCE, rows, tree_over
from tests.support.families import build
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

LAYERS = {  # kernel of each kind of layer: windows, soft caps, sinks and chunks included
    "llama": {"tree_flash"},
    "gemma2": {"tree_flash"},
    "gpt_oss": {"tree_flash"},
    "mistral": {"tree_flash"},
    "llama4_text": {"tree_flash"},
    "deepseek_v3": {"dense"},  # its model changes cached keys before it attends to them
}


@pytest.mark.parametrize("family", LAYERS)
@torch.inference_mode()
def test_a_tree_scores_as_on_the_dense_kernel(family: str) -> None:
    prompts, scores = rows([9, 4, 13]), []
    tree = tree_over(prompts)
    for kernel in ("dense", "tree_flash"):
        target = TargetModel(build(family), name=family, kernel=kernel, runtime="stock", prove=False)
        cache = target.new_cache(3, 64)
        target.prefill(cache, prompts)
        scores.append(target.forward_tree(cache, tree).logits[tree.valid])
        if kernel == "tree_flash":
            target.prefill(cache, prompts)  # behind the first, past every window
            assert {layer.attention for layer in served(target)} == LAYERS[family]
    torch.testing.assert_close(scores[0], scores[1], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize(("family", "temperature"), [("llama", 0.0), ("mistral", 1.0)])
def test_texts_equal_those_of_the_dense_kernel(family: str, temperature: float) -> None:
    texts = []
    for kernel in ("dense", "tree_flash"):
        target, draft = (
            TargetModel(
                build(family, seed, num_hidden_layers=2), name=family, kernel=kernel, runtime="stock", prove=False
            )
            for seed in (0, 1)
        )
        for drafter in (Ngram(3, 1, 5, 2, 10), DraftModel(draft, [2, 2])):
            done = speculative(
                [[1, 2, 3, 1, 2, 3, 1], [5, 6, 5, 6, 5]], drafter, TreeAttention(target), Exact(),
                SamplingParams(temperature=temperature), StopRule(6), [[0], [1]],
            )  # fmt: skip
            texts.append(done.texts)
    assert texts[:2] == texts[2:]


def test_a_target_on_the_kernel_passes_its_own_proof() -> None:
    target = TargetModel(build("llama"), name="llama", kernel="tree_flash", runtime="stock")
    assert target.kernel.name == "tree_flash"
    assert target.proof is not None
    assert target.proof.holds(target.dtype)


def test_what_the_kernel_lacks_goes_to_dense() -> None:
    kernel = choose_kernel("tree_flash", torch.device("cpu"))
    assert isinstance(kernel, TreeFlash)
    x = torch.zeros(1, 2, 3, 64)
    assert kernel.supports(x, x, x)
    assert not kernel.supports(x.double(), x.double(), x.double())
    assert not kernel.supports(x, x.bfloat16(), x.bfloat16())
    assert not kernel.supports(*[torch.zeros(1, 2, 3, 264)] * 3)
    assert not kernel.supports(x, x, torch.zeros(1, 2, 3, 32))
