"""Drafters state their size and training; the shipped ones load and fit their target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from drafters.draft_model.recipe import DistillRecipe
from drafters.early_exit import EarlyExit
from drafters.early_exit.adapter import fresh_adapter, save_adapter
from drafters.early_exit.recipe import EarlyExitRecipe
from drafters.medusa import Medusa
from drafters.medusa.formats import write_official
from drafters.medusa.heads import fresh_heads
from drafters.ngram import Ngram
from drafters.shared import shipped
from drafters.union import UnionDrafter
from specdec.decoding.protocols import Drafter, Session, Size, traits_of
from specdec.decoding.sampling import SamplingParams
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.saving import TRAINING, save_drafter, training_tokens
from tests.conftest import tiny_draft
from verifiers.tree_attention import TreeAttention

DIM = 64
BLOCK = DIM * DIM + DIM


def weights(drafter: Drafter, target: TargetModel) -> Size:
    drafter.start(Session(target, [[1, 2, 3]], SamplingParams(), 40, TreeAttention(target).begin))
    return traits_of(drafter).size


def adapter(target: TargetModel, folder: Path) -> EarlyExit:
    """Return heads of one residual block, read from a folder."""
    folder.mkdir()
    save_adapter(fresh_adapter(target, 1, blocks=1), target, folder)
    return EarlyExit(1, str(folder))


def test_what_needs_no_training_adds_nothing(tiny: TargetModel) -> None:
    for drafter in (Ngram(3, 1, 5, 2, 10), EarlyExit(1, "plain")):
        assert weights(drafter, tiny) == Size(0, None)


def test_what_was_trained_is_counted_without_what_the_target_has(tiny: TargetModel, tmp_path: Path) -> None:
    exit_ = adapter(tiny, tmp_path / "exit")
    assert weights(exit_, tiny) == Size(BLOCK + DIM, None)  # with its norm; nobody wrote down what it was trained on
    write_official(fresh_heads(tiny, 3), tmp_path / "heads", "tiny")
    (tmp_path / "heads" / TRAINING).write_text('{"tokens": 120}')
    heads = Medusa(str(tmp_path / "heads"), 3)
    assert weights(heads, tiny) == Size(3 * BLOCK, 120)
    assert weights(Medusa("fresh", 3), tiny).training_tokens is None
    draft = tiny_draft()
    assert weights(DraftModel(draft), tiny) == Size(sum(p.numel() for p in draft.model.parameters()), None)


def test_a_union_adds_what_its_parts_add(tiny: TargetModel, tmp_path: Path) -> None:
    write_official(fresh_heads(tiny, 1), tmp_path / "heads", "tiny")
    (tmp_path / "heads" / TRAINING).write_text('{"tokens": 120}')
    heads, ngram = Medusa(str(tmp_path / "heads"), 1), Ngram(3, 1, 5, 2, 10)
    assert weights(UnionDrafter({"a": ngram, "b": heads}), tiny) == Size(BLOCK, 120)
    exit_ = adapter(tiny, tmp_path / "exit")
    assert weights(UnionDrafter({"a": exit_, "b": heads}), tiny) == Size(2 * BLOCK + DIM, None)
    (tmp_path / "exit" / TRAINING).write_text('{"tokens": 30}')
    assert weights(UnionDrafter({"a": EarlyExit(1, str(tmp_path / "exit")), "b": heads}), tiny).training_tokens == 150


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tokens": "many"}'])
def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    assert training_tokens(tmp_path) is None
    (tmp_path / TRAINING).write_text(text)
    with pytest.raises(InputError, match=r'training.json: expected {"tokens": NUMBER}, got \w+Error'):
        training_tokens(tmp_path)


def test_what_is_shipped_for_a_target_is_found_by_its_name(
    tiny: TargetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run leaves it in its folder `drafter`."""
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    recipes = {
        "draft_model": (DistillRecipe([0], whole=False), DraftModel("auto")),
        "early_exit": (EarlyExitRecipe(1, blocks=1), EarlyExit(1, "auto")),
    }
    for name, (recipe, drafter) in recipes.items():
        module = recipe.build(tiny, torch.arange(tiny.vocab_size))
        save_drafter(recipe, module, tiny, tmp_path / "tiny" / name, 70)
        assert weights(drafter, tiny) == Size.of(module, 70)


SHIPPED = sorted(file.parent for file in shipped.WEIGHTS.glob("*/*/*.safetensors"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_what_is_shipped_has_a_card_and_its_training_and_is_small(folder: Path) -> None:
    assert "## Training" in (folder / "README.md").read_text("utf-8")
    assert (training_tokens(folder) or 0) > 0
    both = [folder.parent / name for name in ("draft_model", "early_exit")]
    assert sum(file.stat().st_size for one in both for file in one.rglob("*")) < 25e6
