"""Speculative decoding with token trees.

    import specdec
    lm = specdec.load("smollm2_135m", drafter="ngram")
    print(lm.generate(["Why is the sky blue?"], max_new_tokens=64)[0])

The names below are enough to decode text, and to write a drafter or an acceptance rule. They are imported at their
first use. This package contains no drafters, no verifiers and no Hydra; `drafters`, `verifiers` and `experiments`
contain them and import this package.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Set before torch loads OpenMP. OpenMP threads spin at every barrier; if other processes use the cores, each of the
# hundreds of barriers in a forward then costs a time slice. Ten thousand rounds of spinning are enough for the gaps
# within a forward.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from specdec.decoding.decoder import Decoder
    from specdec.decoding.protocols import (
        AcceptanceRule,
        Drafter,
        DraftState,
        ExactFor,
        Session,
        Verdict,
        Verifier,
    )
    from specdec.decoding.sampling import SamplingParams
    from specdec.decoding.stopping import StopRule
    from specdec.errors import InputError
    from specdec.lm import SpeculativeLM, Text, load
    from specdec.model.target import TargetModel
    from specdec.trees.tree import TokenTree

__version__ = "0.1.0"

_HOMES = {
    "load": "specdec.lm",
    "SpeculativeLM": "specdec.lm",
    "Text": "specdec.lm",
    "Decoder": "specdec.decoding.decoder",
    "TargetModel": "specdec.model.target",
    "TokenTree": "specdec.trees.tree",
    "SamplingParams": "specdec.decoding.sampling",
    "StopRule": "specdec.decoding.stopping",
    "Drafter": "specdec.decoding.protocols",
    "Session": "specdec.decoding.protocols",
    "DraftState": "specdec.decoding.protocols",
    "Verifier": "specdec.decoding.protocols",
    "AcceptanceRule": "specdec.decoding.protocols",
    "Verdict": "specdec.decoding.protocols",
    "ExactFor": "specdec.decoding.protocols",
    "InputError": "specdec.errors",
}

__all__ = [
    "AcceptanceRule",
    "Decoder",
    "DraftState",
    "Drafter",
    "ExactFor",
    "InputError",
    "SamplingParams",
    "Session",
    "SpeculativeLM",
    "StopRule",
    "TargetModel",
    "Text",
    "TokenTree",
    "Verdict",
    "Verifier",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'specdec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
