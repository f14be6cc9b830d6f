"""A draft model: a smaller model with the target's tokenizer, or a student made of some of the target's layers.

drafter.py   drafts with it
recipe.py    trains a student
"""

from drafters.draft_model.drafter import DraftModel

__all__ = ["DraftModel"]
