"""Stream a text; the accepted tokens of a step appear together.

python examples/stream.py smollm2_135m hydra_heads "Tell me about the sea."
"""

from __future__ import annotations

import sys

import specdec


def main(model: str = "smollm2_135m", drafter: str = "ngram", prompt: str = "Tell me about the sea.") -> None:
    lm = specdec.load(model, drafter=drafter)
    lm.generate(prompt, max_new_tokens=96, on_text=lambda _row, piece: print(piece, end="", flush=True))
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
