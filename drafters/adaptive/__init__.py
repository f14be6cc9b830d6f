"""Adaptive trees: of what a drafter proposes, each step verifies what pays, and nothing where nothing does.

drafter.py     the drafter around another    estimates.py   how often a node is right, learnt while drafting
choice.py      choosing nodes                costs.py       what a verify and a level of drafting take
depth.py       choosing depth                replayed.py    the same on a recorded run, without a model
"""

from drafters.adaptive.drafter import Adaptive

__all__ = ["Adaptive"]
