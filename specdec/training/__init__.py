"""Training drafters: the target's own text, and one trainer for every trainable drafter.

recipe.py defines the interface of a trainable drafter. Nothing in this package depends on a particular drafter.
"""
