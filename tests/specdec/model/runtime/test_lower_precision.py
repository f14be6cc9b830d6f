"""Weights in lower precision: which ones, and which stay; experts and GPT-2's products too."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from specdec.model.runtime.experts import Experts
from specdec.model.runtime.packed import PackedLinear
from specdec.model.runtime.storage import pack
from tests.support.families import FAMILIES, build

# of the largest logit: what rounding the weights of two small layers may change
STEP = {"bf16": 0.05, "int8": 0.1, "int4": 0.8}


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["mixtral", "gpt2", "llama"])
@torch.inference_mode()
def test_all_products_of_a_model_are_covered(family: str, weights: str) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    model = build(family)
    before = model(ids).logits
    line = pack(model, weights)
    after = model(ids).logits
    assert after.isfinite().all()
    assert 0 < float((after - before).abs().max()) <= STEP[weights] * float(before.abs().max())
    stay = {type(m).__name__ for m in model.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))}
    assert stay <= {"Embedding", "MixtralTopKRouter"}
    assert line is not None
    assert line.startswith(f"storage={weights}: ")
    assert "; in fp32 stay Embedding" in line
    quantised = sum(isinstance(m, PackedLinear) for m in model.modules())
    assert quantised > (20 if family == "mixtral" else 8)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
@torch.inference_mode()
def test_experts_are_taken_over_where_they_compute_the_same(family: str) -> None:
    extra = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = CONFIG_MAPPING[family](**{**FAMILIES["llama"], **extra})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    layers = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    assert layers
    for layer in layers:
        made = Experts.of(layer)
        assert made is not None
        assert {p.data_ptr() for p in made.parameters()} >= {layer.gate_up_proj.data_ptr(), layer.down_proj.data_ptr()}
        x, index, shares = torch.randn(5, config.hidden_size), torch.randint(4, (5, 2)), torch.rand(5, 2)
        torch.testing.assert_close(made(x, index, shares), layer(x, index, shares), atol=1e-5, rtol=1e-4)
    layers[0].act_fn = torch.nn.Sequential(layers[0].act_fn)
    plain = type(layers[0]).forward
    layers[0].forward = lambda *given: plain(layers[0], *given) * 2
    assert Experts.of(layers[0]) is None
