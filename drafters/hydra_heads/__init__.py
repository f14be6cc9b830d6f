"""Hydra heads: Medusa heads that also read the tokens drafted before theirs (arXiv 2402.05109).

drafter.py   proposing with them           heads.py   what is trained           recipe.py   training them

(Not to be confused with Hydra, the configuration framework.)
"""

from drafters.hydra_heads.drafter import Hydra

__all__ = ["Hydra"]
