"""Medusa (arXiv 2401.10774): heads beside the target's own output layer guess several tokens at once.

heads.py     the module                      recipe.py    training it on a frozen target
drafter.py   proposing trees with it         joint.py     training it with the target
trees.py     static trees on disk            loss.py      what it learns from
formats.py   heads on disk, as layouts.py    measure.py   how often it is right
             names them and files.py finds them
"""

from drafters.medusa.drafter import Medusa

__all__ = ["Medusa"]
