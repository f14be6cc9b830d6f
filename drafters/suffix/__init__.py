"""Draft what followed earlier occurrences of the text's own end, of any length.

automaton   every substring of a growing text: its followers and how often each occurred
corpus      a suffix array over millions of tokens, on disk
drafter     the tree of the most probable continuations
"""

from drafters.suffix.drafter import Suffix

__all__ = ["Suffix"]
