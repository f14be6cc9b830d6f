"""Hydra heads: Medusa heads that also read the tokens drafted before theirs (arXiv 2402.05109).

heads.py     the module
drafter.py   proposes trees with it
recipe.py    trains it

(Not to be confused with Hydra, the configuration framework.)
"""

from drafters.hydra_heads.drafter import Hydra

__all__ = ["Hydra"]
