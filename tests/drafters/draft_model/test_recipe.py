"""Distilling a student: it learns, it comes back from its folder and from transformers, and shares what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drafters.draft_model.drafter import DraftModel
from drafters.draft_model.recipe import DistillRecipe, load_student, save_whole
from experiments import bench, train
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.runtime.packed import PackedLinear
from specdec.model.students import Student, new_student, student_of
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe, TrainBatch
from specdec.training.text.store import TextStore
from tests.specdec.training.conftest import data  # noqa: F401  (a fixture)
from tests.support.commands import command
from tests.support.families import FAMILIES, build
from tests.support.own_text import NEW, PROMPTS, own_text
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention


@pytest.fixture(scope="module")
def batch(target: TargetModel) -> TrainBatch:
    """Sampled text of the target's own, with its hidden states."""
    return own_text(target, temperature=1.0)


def recipe(**options) -> DistillRecipe:
    return DistillRecipe(**{"layers": [0, -1], **options})


def built(made: DistillRecipe, target: TargetModel) -> Student:
    module = made.build(target, torch.ones(target.vocab_size, dtype=torch.long))
    assert isinstance(module, Student)
    return module


def measured(drafter: DraftModel, target: TargetModel) -> float:
    """The share of drafted tokens that are accepted of a chain, at temperature 1."""
    sampling, seeds = SamplingParams(temperature=1.0), [[1, row] for row in range(len(PROMPTS))]
    done = speculative(PROMPTS, drafter, TreeAttention(target), Exact(), sampling, StopRule(NEW), seeds)
    return StepMetrics.of(done.steps).acceptance_at_depth[0]


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "total_variation"},
        {"loss": "forward_kl", "vocabulary": 200},
        {"loss": "reverse_kl", "on_policy": 0.5, "on_policy_tokens": 20},
    ],
    ids=str,
)
def test_distillation_lowers_total_variation_and_raises_acceptance(
    target: TargetModel, batch: TrainBatch, options: dict
) -> None:
    made = recipe(**options)
    assert isinstance(made, Recipe)
    student = built(made, target)
    before = measured(made.drafter(student, target), target)

    def accepted() -> float:
        """1 - total variation, on the target's own text."""
        with torch.no_grad():
            metric = made.loss(student, target, batch).metrics["acceptance"]
        return float(metric.total / metric.weight)

    first, optimizer = accepted(), torch.optim.AdamW(student.parameters(), lr=2e-3)
    untouched = [p.clone() for p in target.model.parameters()]
    for step in range(60):
        loss = made.loss(student, target, TrainBatch(**{**vars(batch), "progress": step / 60}))
        optimizer.zero_grad()
        (loss.loss.total / loss.loss.weight).backward()
        optimizer.step()
    assert accepted() > first + 0.05
    assert measured(made.drafter(student, target), target) > before + 0.01
    assert all(torch.equal(a, b) for a, b in zip(untouched, target.model.parameters(), strict=True))


def test_own_text_is_the_students_judged_by_the_target(target: TargetModel, batch: TrainBatch) -> None:
    made = recipe(on_policy=1.0, on_policy_tokens=9)
    student = built(made, target)
    own = made.own_text(student, target, batch)
    assert own.tokens.shape[1] <= len(PROMPTS[0]) + 9
    assert own.tokens[:, :3].tolist() == PROMPTS
    assert int(own.answer.sum()) == int((own.valid.sum(1) - 3).sum())
    assert torch.equal(own.tokens, made.own_text(student, target, batch).tokens)  # a resumed run writes the same
    with target.stock() as model, torch.no_grad():
        hidden = model.base_model(input_ids=own.tokens).last_hidden_state
    torch.testing.assert_close(own.features["hidden"], hidden, atol=1e-5, rtol=1e-4)
    whole = new_student(target, [0, 1, 2, 3])
    loss = made.loss(whole, target, batch)  # a student that is the target diverges nowhere
    assert float(loss.loss.total.detach()) == pytest.approx(0.0, abs=1e-3)


PLACED = ("afmoe", "deepseek_v2", "deepseek_v3", "llama4_text")  # their config says by number which layers are dense


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_all_layers_is_the_target(family: str) -> None:
    """A student of any architecture shares embeddings and output layer, and nothing else."""
    target = TargetModel(build(family), name=family, runtime="stock")
    count = target.depth
    model = student_of(target, list(range(count)))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with target.stock() as stock, torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-6, rtol=1e-5)
    theirs = {p.data_ptr() for p in target.model.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.data_ptr() not in theirs), name
    assert model.get_output_embeddings().weight.data_ptr() in theirs
    assert any(parameter.requires_grad for parameter in model.parameters())
    if family in PLACED:
        with pytest.raises(
            InputError, match=r"recipe\.layers: expected layers of the kind that the target's config gives"
        ):
            student_of(target, [count - 1])
        return
    short = student_of(target, [count - 1])
    assert short.config.get_text_config().num_hidden_layers == 1
    assert short(ids).logits.shape == (1, 5, target.vocab_size)


@pytest.mark.parametrize("vocabulary", [None, torch.tensor([3, 9, 80, 200])])
def test_a_student_comes_back_from_its_folder(tmp_path: Path, target: TargetModel, vocabulary) -> None:
    made, student = recipe(), new_student(target, [0, -1], vocabulary)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.01
    made.save(student, target, tmp_path)
    read = load_student(tmp_path, target)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name].to(tensor), tensor, atol=1e-3, rtol=1e-3)
    parts = (TreeAttention(target), Exact(), SamplingParams(), StopRule(NEW))
    texts = [
        speculative(PROMPTS, DraftModel(source, [1, 1]), *parts, [[0]] * len(PROMPTS))
        for source in (student, str(tmp_path))
    ]
    assert texts[0].texts == texts[1].texts
    drafted = [t for step in texts[0].steps for t in step.tokens[: step.accepted]]
    assert vocabulary is None or set(drafted) <= set(vocabulary.tolist())


@pytest.mark.parametrize("weights", ["stored", "bf16", "int8", "int4"])
def test_a_student_drafts_in_lower_precision(target: TargetModel, weights: str) -> None:
    """In modules of its own: neither the target's weights nor the student's are touched, nor is the text."""
    student = new_student(target, [0, -1])
    parts = (TreeAttention(target), Exact(), SamplingParams(), StopRule(NEW), [[0]] * len(PROMPTS))
    plain = autoregressive(PROMPTS, target, *parts[2:])
    drafter = DraftModel(student, [1, 1], storage=weights)
    assert speculative(PROMPTS, drafter, *parts).texts == plain.texts
    kinds = {m.form for m in drafter.model.model.modules() if isinstance(m, PackedLinear)}
    assert kinds == (set() if weights == "stored" else {weights})
    assert not any(isinstance(m, PackedLinear) for m in [*target.model.modules(), *student.model.modules()])


def test_a_student_round_trips_through_transformers(tmp_path: Path, target: TargetModel) -> None:
    student = new_student(target, [0, -1])
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    save_whole(student, target, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(target.tokenizer)  # type: ignore[arg-type]
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, student.model(ids).logits, atol=0.02, rtol=0.02)  # fp16 weights
    assert all(torch.equal(before[name], tensor) for name, tensor in target.model.state_dict().items())
    assert isinstance(DraftModel(str(tmp_path), [1], device="cpu").model, TargetModel)


def test_distill_from_a_shell_then_bench(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    call = command(train.main, tmp_path / "run", monkeypatch, capsys)
    tiny = ["target=tiny", "target.device=cpu", "tracker=none"]
    options = [
        "drafter=draft_model",
        "recipe.layers=[0]",
        "recipe.vocabulary=60",
        "training.epochs=0.2",
        "training.batch_size=8",
    ]
    done = call(*tiny, *options, f"data={data}", f"folder={tmp_path / 'run'}", "recipe.on_policy=0.5")
    assert done.status == 0, done.err
    folder = tmp_path / "run" / "drafter"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "drafter.json",
        "drafter.safetensors",
        "model",
        "training.json",
    }
    again = command(bench.main, tmp_path / "bench", monkeypatch, capsys)
    done = again(
        *tiny, "drafter=draft_model", f"drafter.model={folder}", "prompts.limit=1", "generation.max_new_tokens=8"
    )
    assert done.status == 0, done.err
    assert "texts identical" in done.out
    summary = json.loads((tmp_path / "bench" / "summary.json").read_text("utf-8"))
    trained = TextStore(data).training
    assert summary["training_tokens"] == pytest.approx(0.2 * sum(text.answer_tokens for text in trained), rel=0.1)
    layer = 2 * 64 * 64 + 64 * 64 + 3 * 64 * 128 + 2 * 64  # queries and output, keys and values, the MLP, two norms
    assert summary["parameters_added"] == layer + 64  # embeddings and output layer are the target's


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe(loss="mse"), "recipe.loss: expected one of token, cross_entropy, forward_kl"),
        (lambda: recipe(on_policy=1.5), "recipe.on_policy: expected a share in [0, 1], got 1.5; try 0.5"),
        (lambda: recipe(on_policy=0.5, loss="token"), "recipe.on_policy: expected a loss that asks the target"),
        (lambda: recipe(on_policy_tokens=0), "recipe.on_policy_tokens: expected an integer >= 1, got 0; raise it"),
        (
            lambda: built(recipe(layers=[], on_policy=0.5), load_tiny(device="cpu")),
            "recipe.layers: expected layers of the target tiny, counted from 0 to 1, got []",
        ),
        (lambda: built(recipe(layers=[0, 2]), load_tiny(device="cpu")), "counted from 0 to 1, got [0, 2]"),
    ],
)
def test_bad_options(make, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


def test_a_student_of_another_target_is_refused(tmp_path: Path, target: TargetModel) -> None:
    recipe(whole=False).save(new_student(target, [0], torch.tensor([1, 250])), target, tmp_path)
    other = TargetModel(build("llama"), name="llama")
    with pytest.raises(
        InputError, match=r"drafter.model: expected one for a target built like llama, got one for 'tiny'"
    ):
        speculative(
            PROMPTS, DraftModel(str(tmp_path)), TreeAttention(other), Exact(), SamplingParams(), StopRule(4), [[0]] * 12
        )
    (tmp_path / "drafter.json").write_text('{"drafter": "early_exit"}')
    with pytest.raises(InputError, match=r"of the drafter draft_model, got .*ValueError: of the drafter 'early_exit'"):
        load_student(tmp_path, target)


def test_a_target_that_no_student_is_shipped_for(tiny: TargetModel) -> None:
    parts = (TreeAttention(tiny), Exact(), SamplingParams(), StopRule(4))
    with pytest.raises(
        InputError, match=r"drafter.model=auto: expected a target that draft_model weights are shipped for"
    ):
        speculative(PROMPTS[:1], DraftModel(), *parts, [[0]])
