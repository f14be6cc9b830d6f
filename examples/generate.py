"""Generate texts with a drafter, and show which tokens were drafted.

python examples/generate.py smollm2_135m union "Why is the sky blue?" "Name three colours."
"""

from __future__ import annotations

import sys

import specdec


def main(model: str = "smollm2_135m", drafter: str = "ngram", *prompts: str) -> None:
    lm = specdec.load(model, drafter=drafter)
    for text in lm.generate(prompts or ["Why is the sky blue?"], max_new_tokens=64):
        shown = [
            piece if who == "drafted" else f"[{piece}]" for piece, who in zip(text.pieces, text.writers, strict=True)
        ]
        print("".join(shown))
        print(f"tokens per step {text.tokens_per_step:.2f}; [in brackets]: tokens that the target wrote itself\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
