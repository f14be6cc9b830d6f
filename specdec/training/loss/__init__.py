"""Losses.

vocabulary_loss.py    cross entropy and divergences over a vocabulary, in chunks
imitation.py          losses of drafters that predict the target's next token
draft_vocabulary.py   the most frequent tokens, as a smaller vocabulary
"""
