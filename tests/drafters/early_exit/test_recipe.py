"""Training an adapter: losses that say what they should, drafts that get better, and the trainer as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drafters.early_exit.adapter import ExitAdapter, load_adapter
from drafters.early_exit.recipe import EarlyExitRecipe
from experiments import self_distill, train
from specdec.decoding.generate import speculative
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.loss.imitation import LOSSES, next_token_loss
from specdec.training.recipe import Recipe, TrainBatch
from tests.support.commands import command
from tests.support.own_text import NEW, PROMPTS, learn
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention


def recipe(**options) -> EarlyExitRecipe:
    return EarlyExitRecipe(2, **{"stored": False, "layers": [3], **options})


def acceptance(made: EarlyExitRecipe, module: torch.nn.Module, target: TargetModel) -> float:
    parts = (made.drafter(module, target), TreeAttention(target), Exact(), SamplingParams(), StopRule(NEW))
    return StepMetrics.of(speculative(PROMPTS, *parts, [[0]] * len(PROMPTS)).steps).acceptance_at_depth[0]


@pytest.mark.parametrize(
    "options", [{}, {"blocks": 1, "loss": "token"}, {"vocabulary": 120, "loss": "total_variation"}], ids=str
)
def test_adapters_learn_the_targets_text(target: TargetModel, batch: TrainBatch, options: dict) -> None:
    made = recipe(**options)
    assert isinstance(made, Recipe)
    torch.manual_seed(0)
    module = made.build(target, torch.bincount(batch.tokens[batch.answer], minlength=target.vocab_size))
    assert isinstance(module, ExitAdapter)
    before = acceptance(made, module, target)
    losses = learn(made, module, target, batch, steps=60)
    assert losses[-1] < 0.7 * losses[0]
    assert acceptance(made, module, target) > before + 0.1
    assert not any(p.grad is not None for p in target.model.parameters())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_of_the_next_token(target: TargetModel, batch: TrainBatch, kind: str) -> None:
    """Against the plain formula, at the positions an answer's token follows; nothing is lost where q is p."""
    with target.stock() as model, torch.no_grad():
        hidden = model.base_model(input_ids=batch.tokens).last_hidden_state
    weight = target.model.get_output_embeddings().weight.detach()
    states = hidden + 0.3 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    begin = len(PROMPTS[0]) - 1
    log_q, log_p = (torch.log_softmax(x[:, begin:-1] @ weight.T, -1) for x in (states, hidden))
    q, p, came = log_q.exp(), log_p.exp(), batch.tokens[:, begin + 1 :]
    expected = {
        "token": -log_q.gather(2, came[..., None]).sum(),
        "forward_kl": (p * (log_p - log_q)).sum(),
        "reverse_kl": (q * (log_q - log_p)).sum(),
        "total_variation": (p - q).abs().sum() / 2,
        "cross_entropy": -(p * log_q).sum(),
    }[kind]
    loss = next_token_loss(states, hidden, batch, target, kind)
    torch.testing.assert_close(loss.loss.total, expected, rtol=1e-3, atol=1e-2)
    assert float(loss.loss.weight) == came.numel()
    if kind in ("forward_kl", "reverse_kl", "total_variation"):
        same = next_token_loss(hidden, hidden, batch, target, kind)
        assert float(same.loss.total) == pytest.approx(0.0, abs=1e-3)
        assert float(same.metrics["acceptance"].total) == pytest.approx(came.numel())


def test_stored_features_and_those_made_on_the_fly_give_one_loss(
    target: TargetModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Both through the trainer, as from a shell; the trained adapter is then one that `bench` can load."""
    tiny = ["target=tiny", "target.device=cpu"]
    distil = command(self_distill.main, tmp_path / "distil", monkeypatch, capsys)
    done = distil(*tiny, f"folder={data}", "features=[hidden,layer:1]")
    assert done.status == 0, done.err
    short = ["training.epochs=0.2", "training.batch_size=8", "reports.log_every=1", "tracker=none"]
    losses = []
    for stored in (True, False):
        folder = tmp_path / f"stored-{stored}"
        call = command(train.main, folder, monkeypatch, capsys)
        done = call(
            *tiny, *short, "drafter=early_exit", "drafter.exit_layer=1", f"recipe.stored={stored}", f"data={data}",
            f"folder={folder}", "drafter.adapter=plain", "recipe.loss=token",
        )  # fmt: skip
        assert done.status == 0, done.err
        lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
        losses.append([float(line.split('"loss": ')[1].split(",")[0]) for line in lines if '"loss": ' in line])
        read = load_adapter(folder / "drafter", load_tiny(device="cpu"))
        assert (read.exit_layer, read.student is None) == (1, False)
    assert len(losses[0]) >= 3
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=0.02, atol=1e-3)  # stored ones are in 16 bit


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recipe(loss="mse"), "recipe.loss: expected one of token, cross_entropy, forward_kl, reverse_kl, "),
        (lambda: recipe(blocks=-1), "recipe.blocks: expected an integer >= 0, got -1; use 0 for layers"),
        (
            lambda: EarlyExitRecipe(4).build(load_tiny(device="cpu"), torch.ones(258, dtype=torch.long)),
            "recipe.exit_layer: expected 1 to 1, fewer than the 2 layers of the target tiny, got 4",
        ),
    ],
)
def test_bad_options(make, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)
