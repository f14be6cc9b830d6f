"""EAGLE: one layer predicts the target's next hidden state, and from it the next token (arXiv 2401.15077).

head.py      the trained module
layers.py    runs its layers with a cache of their own
drafter.py   proposes trees with it
recipe.py    trains it
"""

from drafters.eagle.drafter import Eagle

__all__ = ["Eagle"]
