"""How an unmodified model is computed on a CPU.

`stock` leaves it to PyTorch. `fast` uses our kernels (`kernels/`), which read the weights once at memory
speed: a verify step of 8 tokens then costs about what a decode step costs.

    decoder.py    Llama-like models: all layers in one call
    few_rows.py   any other: each `nn.Linear` by itself
    quantised.py  weights in bf16, int8 or int4 for both

Weights are used where they are, not copied, and the modeling code is not touched.
"""

from specdec.runtime.decoder import FusedDecoder
from specdec.runtime.fast import FastRuntime, choose_runtime
from specdec.runtime.few_rows import NotCovered
from specdec.runtime.quantised import quantise

__all__ = ["FastRuntime", "FusedDecoder", "NotCovered", "choose_runtime", "quantise"]
