"""Adaptive trees: of what a drafter proposes, each step verifies what pays, and nothing where nothing does.

drafter.py     the drafter around another    costs.py       what a verify and a level of drafting take
choice.py      choosing nodes                replayed.py    the same on a recorded run, without a model
depth.py       choosing depth                ../estimates.py   how often a node is right, learnt while drafting
"""

from drafters.adaptive.drafter import Adaptive

__all__ = ["Adaptive"]
