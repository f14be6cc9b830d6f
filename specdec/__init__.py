"""Speculative decoding with token trees: the core.

Knows no drafter, no verifier implementation and no Hydra; those live in the packages
`drafters`, `verifiers` and `experiments`, which import this one and never each other.
"""

__version__ = "0.1.0"
