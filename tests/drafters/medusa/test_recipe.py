"""Both recipes: what they build, learn and leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from drafters.medusa.formats import read_heads, write_official
from drafters.medusa.heads import MedusaHeads
from drafters.medusa.joint import JointMedusaRecipe, JointModule, without_adapters
from drafters.medusa.recipe import MedusaRecipe
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.load import load_hub, load_tiny
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.text.features import teacher_forced
from tests.drafters.medusa.made import random_heads
from tests.support.configs import CONF
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

PROMPTS = [[5, 6, 7], [8, 9], [40, 41, 42, 43, 44], [200], [100, 101], [17, 3]]
NEW = 24
GREEDY = SamplingParams()


def own_text(target: TargetModel, progress: float = 0.0) -> TrainBatch:
    """The target's greedy answers."""
    texts = autoregressive(PROMPTS, target, GREEDY, StopRule(NEW), [[0]] * len(PROMPTS)).texts
    rows = [[*prompt, *text] for prompt, text in zip(PROMPTS, texts, strict=True)]
    seq = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (seq - len(row)) for row in rows])
    place, lengths = torch.arange(seq), torch.tensor([[len(row)] for row in rows])
    valid = place < lengths
    answer = valid & (place >= torch.tensor([[len(prompt)] for prompt in PROMPTS]))
    hidden = teacher_forced(target, tokens, ["hidden"])["hidden"].clone() * valid[..., None]
    return TrainBatch(tokens, answer, valid, {"hidden": hidden}, progress)


def tau(recipe: Recipe, module: torch.nn.Module, target: TargetModel) -> float:
    parts = (recipe.drafter(module, target), TreeAttention(target), Exact(), GREEDY, StopRule(NEW))
    return StepMetrics.of(speculative(PROMPTS, *parts, [[0]] * len(PROMPTS)).steps).tokens_per_step or 0.0


@pytest.mark.parametrize("options", [{}, {"vocabulary": 80, "soft": 0.3}, {"own_output": True, "layers": 2}], ids=str)
def test_heads_learn_the_targets_text(tiny: TargetModel, tmp_path: Path, options: dict) -> None:
    recipe = MedusaRecipe(heads=3, **options)
    assert isinstance(recipe, Recipe)
    data = own_text(tiny)
    module = recipe.build(tiny, torch.bincount(data.tokens[data.answer], minlength=tiny.vocab_size))
    before = tau(recipe, module, tiny)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(150):
        loss = recipe.loss(module, tiny, data)
        (loss.loss.total / loss.loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    top1 = [loss.metrics[f"top1/head{head}"] for head in range(3)]
    assert all(float(part.total / part.weight) > 0.6 for part in top1)
    after = tau(recipe, module, tiny)
    assert after > max(1.5, before + 0.3)
    recipe.save(module, tiny, tmp_path)
    assert isinstance(module, MedusaHeads)
    loaded = read_heads(str(tmp_path))
    assert (loaded.notes, loaded.base_model) == ([], "tiny")
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(loaded.heads.state_dict()[name].to(tensor), tensor, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_heads_on_disk(tiny: TargetModel, tmp_path: Path) -> None:
    made = random_heads(tiny, 2)
    write_official(made, tmp_path, "tiny", torch.float32)
    module = MedusaRecipe(heads=5, start=str(tmp_path)).build(tiny, torch.zeros(tiny.vocab_size, dtype=torch.long))
    assert torch.equal(module.weight, made.weight)


def test_a_shared_output_layer_takes_another_vocabulary(tiny: TargetModel, tmp_path: Path) -> None:
    write_official(random_heads(tiny, 2, vocabulary=torch.tensor([1, 5, 9])), tmp_path, "tiny", torch.float32)
    module = MedusaRecipe(start=str(tmp_path), vocabulary=4).build(tiny, torch.arange(tiny.vocab_size))
    assert module.vocabulary.tolist() == list(range(tiny.vocab_size - 4, tiny.vocab_size))


def joint(**options) -> JointMedusaRecipe:
    return JointMedusaRecipe(MedusaRecipe(heads=2), **{"rank": 4, "alpha": 2, "lambda_0": 0.2, **options})


def built(recipe: JointMedusaRecipe, target: TargetModel) -> JointModule:
    torch.manual_seed(0)
    module = recipe.build(target, torch.zeros(target.vocab_size, dtype=torch.long))
    assert isinstance(module, JointModule)
    return module


def gradients(module: JointModule, recipe: JointMedusaRecipe, target: TargetModel, data: TrainBatch) -> list[bool]:
    """Whether each of the backbone's trained parameters is moved."""
    module.zero_grad()
    recipe.loss(module, target, data).loss.total.backward()
    assert all(p.grad is not None for p in module.parameters())
    return [bool(p.grad.any()) for p in module.backbone.values()]


def test_adapters_begin_as_nothing_and_are_held_to_the_old_distribution() -> None:
    target = load_tiny(device="cpu", runtime="stock")
    plain = autoregressive(PROMPTS, target, GREEDY, StopRule(NEW), [[0]] * len(PROMPTS)).texts
    recipe, data = joint(schedule="constant"), own_text(target)
    module = built(recipe, target)
    assert isinstance(recipe, Recipe)
    assert all("lora" in name and "lm_head" not in name for name in module.backbone)
    assert autoregressive(PROMPTS, target, GREEDY, StopRule(NEW), [[0]] * len(PROMPTS)).texts == plain
    loss = recipe.loss(module, target, data)
    assert float(loss.metrics["backbone"].total) == pytest.approx(0.0, abs=1e-4)
    assert float(loss.loss.weight) == float(data.answer.sum())
    assert any(gradients(module, recipe, target, data))
    with torch.no_grad():
        for p in module.backbone.values():
            p += 0.1
    assert float(recipe.loss(module, target, data).metrics["backbone"].total) > 1.0
    with without_adapters(target.model):
        assert autoregressive(PROMPTS, target, GREEDY, StopRule(NEW), [[0]] * len(PROMPTS)).texts == plain


def test_the_heads_loss_reaches_the_backbone_when_and_as_much_as_it_should() -> None:
    target = load_tiny(device="cpu", runtime="stock")
    recipe = joint(warm_up=0.3)
    module = built(recipe, target)
    assert not any(gradients(module, recipe, target, own_text(target, progress=0.2)))
    assert any(gradients(module, recipe, target, own_text(target, progress=0.3)))

    def share(progress: float) -> float:
        return float(recipe.loss(module, target, own_text(target, progress)).loss.total.detach())

    assert share(0.0) == pytest.approx(0.0, abs=1e-4)
    assert share(1 / 3) == pytest.approx(0.5 * share(1.0), rel=1e-3)  # sin(pi / 6)


def test_backbone_and_heads_learn_together_and_load_again(tmp_path: Path) -> None:
    tiny = load_tiny(device="cpu")
    tiny.model.save_pretrained(tmp_path / "base")
    assert tiny.tokenizer is not None
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    target = load_hub(str(tmp_path / "base"), device="cpu", runtime="stock")
    recipe, data = joint(schedule="constant", lambda_0=1.0), own_text(target)
    module = built(recipe, target)
    rates = [{"params": module.heads.parameters(), "lr": 3e-3}, {"params": module.backbone.parameters(), "lr": 1e-3}]
    optimizer, first = torch.optim.AdamW(rates), None
    for _ in range(40):
        loss = recipe.loss(module, target, data)
        first = first or float(loss.loss.total.detach())
        (loss.loss.total / loss.loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.loss.total.detach()) < 0.7 * first
    assert tau(recipe, module, target) > 1.5
    (tmp_path / "joint").mkdir()
    recipe.save(module, target, tmp_path / "joint")
    again = load_hub(str(tmp_path / "joint" / "backbone"), device="cpu")
    outs = [t.prefill(t.new_cache(1, 8), [[1, 2, 3]]).logits for t in (target, again)]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tiny.prefill(tiny.new_cache(1, 8), [[1, 2, 3]]).logits, outs[0], atol=1e-2)
    read_heads(str(tmp_path / "joint")).heads.require_fits(again)


def test_a_whole_backbone_is_trained_on_the_next_token(tmp_path: Path) -> None:
    target = load_tiny(device="cpu", runtime="stock")
    recipe, data = joint(backbone="full"), own_text(target)
    module = built(recipe, target)
    assert {name.replace("/", ".") for name in module.backbone} == {name for name, _ in target.model.named_parameters()}
    loss = recipe.loss(module, target, data)
    loss.loss.total.backward()
    with target.stock() as model:
        logits = model(input_ids=data.tokens).logits.log_softmax(-1)[:, :-1]
    expected = -logits.gather(2, data.tokens[:, 1:, None])[..., 0][data.answer[:, 1:]].sum()
    torch.testing.assert_close(loss.metrics["backbone"].total, expected.detach(), rtol=1e-4, atol=1e-3)
    assert all(p.grad is not None and p.grad.any() for p in target.model.parameters())
    recipe.save(module, target, tmp_path)
    assert isinstance(load_hub(str(tmp_path / "backbone"), device="cpu"), TargetModel)


@pytest.mark.parametrize("choice", ["medusa", "medusa2"])
def test_recipe_files_make_recipes(choice: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["target=tiny", "drafter=medusa", f"recipe={choice}", "drafter.tree=9"])
    recipe = instantiate(cfg.recipe, _convert_="all")
    assert isinstance(recipe, Recipe)
    assert (recipe.heads.tree if choice == "medusa2" else recipe.tree) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MedusaRecipe(heads=0), "recipe.heads: expected an integer >= 1, got 0; raise it"),
        (lambda: MedusaRecipe(soft=1.5), "recipe.soft: expected a number in [0, 1], got 1.5; choose another"),
        (lambda: joint(backbone="qlora"), "recipe.backbone: expected lora or full, got 'qlora'; choose one"),
        (lambda: joint(schedule="linear"), "recipe.schedule: expected constant or sine, got 'linear'; choose one"),
        (lambda: joint(warm_up=1.0), "recipe.warm_up: expected a share in [0, 1), got 1.0; try 0.2"),
        (lambda: built(joint(), fast_target()), "target.runtime: expected the stock runtime while the backbone is"),
    ],
)
def test_options_out_of_range_are_named(make, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def fast_target() -> TargetModel:
    target = load_tiny(device="cpu")
    if target.runtime is None:
        pytest.skip("no compiler: there is no fast runtime")
    return target
