"""Check before the first step that a folder has text to train on, so that a run that learns nothing fails."""

from __future__ import annotations

from collections.abc import Callable

from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.recipe import Recipe
from specdec.training.schedule import Schedule
from specdec.training.text.store import TextStore
from specdec.training.text.texts import VALIDATION_SHARE, Origin, is_validation

MANY = 0.1  # warn if cutting texts loses more than this share of the answer tokens


def require_enough(
    store: TextStore, recipe: Recipe, target: TargetModel, schedule: Schedule, tell: Callable[[str], None]
) -> None:
    """Refuse text that a recipe cannot be trained on.

    Args:
        store: the text folder.
        recipe: the recipe.
        target: the target.
        schedule: `longest` is the number of tokens to which texts are cut.
        tell: called with a line of warning for text that is unusual but usable.

    Raises:
        InputError: the text is of another target or chat template, answers fewer than two prompts, lacks features that
            the recipe reads, or has no answer tokens left after cutting.
    """
    store.origin.require_same(Origin.of(target), store.folder)
    if recipe.live and recipe.features:
        raise InputError("recipe.features", expected="none of a live recipe", got=recipe.features, fix="use []")
    if not store.training or not store.validation:
        raise InputError(
            str(store.folder), expected="answers to two prompts or more: to train on, and to validate with",
            got=len(store.training) + len(store.validation), fix="add text with experiments.self_distill",
        )  # fmt: skip
    for name in recipe.features:
        for text in store.texts:
            store.require(text, name)
    _require_answers(store, schedule.longest, tell)
    if not any(is_validation(text.key) for text in store.validation):
        ids = ", ".join(dict.fromkeys(repr(text.id) for text in store.validation))
        share = f"none of {len(store.texts):,} texts is in the share of {VALIDATION_SHARE:.0%} that is held out"
        tell(f"validation: {share}; {ids} is held out instead")


def _require_answers(store: TextStore, longest: int, tell: Callable[[str], None]) -> None:
    """Refuse texts without answer tokens in their first `longest` tokens; warn if many answer tokens are cut off."""
    for split, texts in (("training", store.training), ("validation", store.validation)):
        whole, used = (
            sum(text.answer_tokens_within(n) for text in texts) for n in (max(t.tokens for t in texts), longest)
        )
        if not used:
            begins = min((text.answers[0][0] for text in texts if text.answers), default=0)
            got = f"none in the {split} texts; of {whole:,}, the first comes after {begins:,} tokens"
            fix = "raise training.longest" if whole else "add text with experiments.self_distill"
            expected = f"answer tokens among the first {longest:,} of a text"
            raise InputError("training.longest", expected=expected, got=got, fix=fix)
        if split == "training" and 1 - used / whole > MANY:
            cut = f"{1 - used / whole:.0%} of {whole:,} answer tokens"
            tell(f"training.longest={longest} cuts off {cut}; raise it to learn from them")
