"""Training on nothing is an error, and what training counts is what it used."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments import train
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training import trainer
from specdec.training.enough import require_enough
from specdec.training.schedule import Schedule
from specdec.training.sums import means
from specdec.training.text.features import complete
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import Origin, Text, is_validation
from tests.specdec.training.conftest import CONF
from tests.specdec.training.gradients import trainer as made_trainer
from tests.specdec.training.linear_head import LinearRecipe
from tests.support.commands import Done, command

NO_FEATURES = LinearRecipe()
NO_FEATURES.features = []


def folder_of(folder: Path, target: TargetModel, keys: list[str], answers: list[list[int]]) -> TextStore:
    """Texts of 30 tokens with these answers in each."""
    with Shard(folder, 0, Origin.of(target)) as shard:
        for key in keys:
            shard.append(Text(key, 0, f"q-{key}", "made", 0.0, shard.end, 30, answers), list(range(40, 70)), {})
    return TextStore(folder)


def keys(count: int, share: str = "f") -> list[str]:
    return [f"{share * 8}{number:08x}" for number in range(count)]


def lines(store: TextStore, target: TargetModel, longest: int = 30) -> list[str]:
    said: list[str] = []
    require_enough(store, NO_FEATURES, target, Schedule(longest=longest), said.append)
    return said


def test_a_few_texts_are_enough_and_one_is_held_out(tmp_path: Path, tiny: TargetModel) -> None:
    store = folder_of(tmp_path, tiny, keys(24), [[10, 30]])
    assert not any(is_validation(text.key) for text in store.texts)
    assert ([text.key for text in store.validation], len(store.training)) == (keys(1), 23)
    assert lines(store, tiny) == [
        "validation: none of 24 texts is in the share of 4% that is held out; 'q-ffffffff00000000' is held out instead"
    ]
    assert int(store.frequencies().sum()) == 23 * 20


def test_the_share_that_is_held_out_is_kept_where_there_is_one(tmp_path: Path, tiny: TargetModel) -> None:
    store = folder_of(tmp_path, tiny, [*keys(5), *keys(2, "0")], [[10, 30]])
    assert [text.key for text in store.validation] == keys(2, "0")
    assert lines(store, tiny) == []


def test_one_prompt_is_too_few(tmp_path: Path, tiny: TargetModel) -> None:
    with pytest.raises(InputError, match="expected answers to two prompts or more: to train on, and to validate with"):
        lines(folder_of(tmp_path, tiny, keys(1), [[10, 30]]), tiny)


def test_answers_behind_the_cut_are_no_answers(tmp_path: Path, tiny: TargetModel) -> None:
    store = folder_of(tmp_path, tiny, [*keys(4), *keys(1, "0")], [[10, 20], [25, 30]])
    assert lines(store, tiny, 29) == []
    assert lines(store, tiny, 12) == [
        "training.longest=12 cuts off 87% of 60 answer tokens; raise it to learn from them"
    ]
    with pytest.raises(InputError) as error:
        lines(store, tiny, 10)
    assert str(error.value) == (
        "training.longest: expected answer tokens among the first 10 of a text, got none in the training texts; "
        "of 60, the first comes after 10 tokens; raise training.longest"
    )


def test_a_folder_without_answers_is_refused(tmp_path: Path, tiny: TargetModel) -> None:
    with pytest.raises(InputError, match=r"got none in the training texts; of 0, .* add text with experiments.self_di"):
        lines(folder_of(tmp_path, tiny, keys(4), []), tiny)


def test_a_shard_without_its_index_is_nobodys(tmp_path: Path, tiny: TargetModel) -> None:
    folder_of(tmp_path, tiny, keys(2), [[10, 30]])
    (tmp_path / "index.json").unlink()
    with pytest.raises(InputError, match=r"expected an index.json that says whose text its shards hold, got no index"):
        Shard(tmp_path, 1, Origin.of(tiny))
    with pytest.raises(InputError, match="restore it, or choose another folder"):
        TextStore(tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize(("epochs", "batch"), [(1.0, 8), (0.3, 16), (2.5, 32)])
def test_tokens_are_those_that_steps_read_before_the_cut(data: Path, epochs: float, batch: int) -> None:
    made = made_trainer(data, batch, 1, epochs=epochs, longest=50)
    steps = [made._order[step] for step in range(made.steps)]
    assert made.tokens == sum(text.answer_tokens_within(50) for texts in steps for text in texts)


def test_a_figure_of_nothing_is_left_out() -> None:
    two, four, none = torch.tensor(2.0), torch.tensor(4.0), torch.tensor(0.0)
    assert means({"loss": (two, four), "top1": (none, none)}) == {"loss": 0.5}


@pytest.fixture
def run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Done]:
    monkeypatch.setattr(trainer, "product_rate", lambda *_: 1e9)
    call = command(train.main, tmp_path / "run", monkeypatch, capsys)
    short = ["reports.validation_texts=2", "measure.prompts=1", "measure.max_new_tokens=4", "training.batch_size=8"]
    where = [
        f"folder={tmp_path / 'run'}",
        f"hydra.searchpath=[file://{CONF}]",
        "allow_targets=[tests.specdec.training.]",
    ]
    tiny = ["target=tiny", "target.device=cpu", "tracker=none", f"data={data}"]
    return lambda *overrides: call(*tiny, *where, *short, *overrides)


def test_heads_that_find_nothing_to_learn_end_the_run(
    run: Callable[..., Done], tmp_path: Path, tiny: TargetModel
) -> None:
    """Answers have one token, but heads learn what follows it: the loss would be 0 of nothing."""
    folder_of(tmp_path / "short", tiny, keys(9), [[10, 11]])
    with Shard(tmp_path / "short", 0, Origin.of(tiny)) as shard:
        complete(tiny, shard, ["hidden"])
    done = run("drafter=medusa", "recipe.heads=2", "drafter.tree=3", f"data={tmp_path / 'short'}")
    assert done.status == 2
    assert "training: expected tokens to learn from, got none in the texts of 1 steps" in done.err
    assert not (tmp_path / "run" / "drafter").exists()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_with_the_last_good_checkpoint(
    what: str, run: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, norm = trainer.Trainer.gradients, trainer.Accelerator.clip_grad_norm_

    def overflows(self: trainer.Trainer, step: int) -> tuple:
        if step == 5 and what == "loss":
            raise self._diverged("loss", math.nan, step)
        self.accelerator.state.at = step
        return honest(self, step)

    def explodes(self: trainer.Accelerator, *args: object) -> object:
        return norm(self, *args) * (math.inf if self.state.at == 5 and what == "gradient" else 1.0)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "gradients", overflows)
        patched.setattr(trainer.Accelerator, "clip_grad_norm_", explodes)
        options = ["drafter=linear", "training.epochs=1", "reports.checkpoint_every=2"]
        done = run(*options)
    assert done.status == 2
    assert f"training: expected a finite {what}, got " in done.err
    advice = "training.learning_rate=0.0005"
    assert f"step-4 is the last good checkpoint; begin again with {advice} and another folder=..." in done.err
    assert "run the same command again" not in done.err
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-?"))
    assert kept == ["step-2", "step-4"]
    assert not (tmp_path / "run" / "drafter").exists()
    done = run(*options, advice, f"folder={tmp_path / 'again'}")
    assert done.status == 0, done.err
    tokens = json.loads((tmp_path / "again" / "drafter" / "training.json").read_text("utf-8"))["tokens"]
    assert tokens > 0
    shutil.rmtree(tmp_path / "again")
