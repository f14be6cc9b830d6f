"""Medusa (arXiv 2401.10774): heads beside the target's own output layer guess several tokens at once.

heads.py     the module            drafter.py   proposing trees with it
formats.py   heads on disk         trees.py     static trees on disk
recipe.py    training it           files.py     where weights are
"""

from drafters.medusa.drafter import Medusa

__all__ = ["Medusa"]
