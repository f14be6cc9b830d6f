"""A draft model: any smaller model with the target's tokenizer, or a student made of the target's own layers.

drafter.py   proposing with it         recipe.py   training a student
"""

from drafters.draft_model.drafter import DraftModel

__all__ = ["DraftModel"]
