"""Medusa (arXiv 2401.10774): heads beside the target's own output layer guess several tokens at once.

heads.py     the module
drafter.py   proposes trees with it
formats.py   reads and writes heads; layouts.py names their tensors, files.py finds their files
recipe.py    trains the heads on a frozen target
joint.py     trains heads and target together
loss.py      the loss of both
measure.py   measures how often each candidate is right
"""

from drafters.medusa.drafter import Medusa

__all__ = ["Medusa"]
