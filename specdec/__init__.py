"""Speculative decoding with token trees.

    import specdec
    lm = specdec.load("smollm2_135m", drafter="ngram")
    print(lm.generate(["Why is the sky blue?"], max_new_tokens=64)[0])

The names below are all one needs to decode, and to write a drafter or an acceptance rule. They are imported when
they are first used. This package knows no drafter, no verifier and no Hydra; those live in `drafters`, `verifiers` and
`experiments`, which import this one.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: its threads spin at every barrier, and beside a busy neighbour each of the hundreds of
# barriers in a forward then costs a time slice. Ten thousand rounds bridge the gaps in a forward, no more.
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
