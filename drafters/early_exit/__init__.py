"""Early exit: the target's own first layers draft, and the rest of it verifies (LayerSkip, arXiv 2404.16710).

drafter.py   proposing with it           adapter.py   what is trained between exit layer and output layer
exits.py     reading a stream's logits   recipe.py    training it
"""

from drafters.early_exit.drafter import EarlyExit

__all__ = ["EarlyExit"]
