"""Adaptive trees: of what a drafter proposes, each step verifies what pays, and nothing where nothing does.

drafter.py     choosing nodes            estimates.py   how often a node is right, learnt while drafting
depth.py       choosing depth            costs.py       what a verify and a level of drafting take
"""

from drafters.adaptive.drafter import Adaptive

__all__ = ["Adaptive"]
