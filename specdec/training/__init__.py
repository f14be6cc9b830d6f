"""Training drafters: the target's own text, and one trainer for every trainable drafter.

recipe.py says what a trainable drafter must bring; nothing else here knows any drafter.
"""
