"""Early exit: the target's own first layers draft, and its other layers verify (LayerSkip, arXiv 2404.16710).

adapter.py   the trained module between exit layer and output layer
exits.py     turns the residual stream at the exit layer into logits
drafter.py   proposes trees
recipe.py    trains an adapter
"""

from drafters.early_exit.drafter import EarlyExit

__all__ = ["EarlyExit"]
