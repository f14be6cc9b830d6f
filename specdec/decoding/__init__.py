"""The decoding loop: draft, verify, accept, commit.

protocols.py        Drafter, Verifier, AcceptanceRule, and the types that pass between them
generate.py         the loop itself, and plain autoregressive decoding
decoder.py          the parts of a step, chosen once
sampling.py         logits to probabilities; reproducible draws
processors.py       the generation config and any logits processor, at every node on its own path
clock.py            time of the phases of a step
stopping.py         EOS, stop strings, limits
grow_fixed.py       grow a tree of fixed shape, level by level
grow_confident.py   grow a tree where the drafter is confident
checks.py           conditions on tensors, checked without waiting for a device
validation.py       check every tree of a run (`bench validate=true`)
"""
