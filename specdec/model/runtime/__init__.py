"""How an unmodified model is computed.

`stock` leaves it to PyTorch. `fast`, on a CPU, uses our kernels (`kernels/`), which read the weights once at
memory speed: a verify step of 8 tokens then costs about what a decode step costs. On CUDA it replays graphs.

    decoder.py    Llama-like models on a CPU: all layers in one call
    few_rows.py   any other on a CPU: each `nn.Linear` by itself
    quantised.py  weights in bf16, int8 or int4 for both
    graphs.py     CUDA: a forward of each shape captured once

Weights are used where they are, not copied, and the modeling code is not touched.
"""

from specdec.model.runtime.decoder import FusedDecoder
from specdec.model.runtime.fast import FastRuntime, choose_runtime, linear
from specdec.model.runtime.few_rows import NotCovered
from specdec.model.runtime.graphs import CapturedForwards
from specdec.model.runtime.quantised import quantise

__all__ = ["CapturedForwards", "FastRuntime", "FusedDecoder", "NotCovered", "choose_runtime", "linear", "quantise"]
