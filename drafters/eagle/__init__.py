"""EAGLE: one layer guesses the target's next hidden state, and so the next token (arXiv 2401.15077).

drafter.py   proposing with it        layers.py   its layers at work        head.py   what is trained
recipe.py    training it
"""

from drafters.eagle.drafter import Eagle

__all__ = ["Eagle"]
