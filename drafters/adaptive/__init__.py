"""Adaptive trees: each step verifies only the proposed nodes that pay, and none if none pays.

drafter.py               wraps another drafter
choice.py                chooses nodes
depth.py                 chooses the depth of drafting
costs.py                 times a verify and the drafting of a level
replayed.py              repeats the choice on a recorded run, without a model
../shared/estimates.py   estimates how often a node is right, learnt while drafting
"""

from drafters.adaptive.drafter import Adaptive

__all__ = ["Adaptive"]
