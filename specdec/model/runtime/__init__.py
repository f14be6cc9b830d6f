"""How the forwards of an unmodified model are computed.

`stock` leaves them to PyTorch. `fast`, on a CPU, uses our kernels (`kernels/`), which read the weights once at memory
speed: a verify step of 8 tokens then costs about as much as a decode step. On CUDA, captured graphs are replayed.

    decoder.py     Llama-like models on a CPU: all layers in one call
    structure.py   read such a model as the kernel's structs
    few_rows.py    other models on a CPU: each `nn.Linear` by itself
    experts.py     mixtures of experts: each expert by itself
    packed.py      modules with weights in a storage format, for both
    storage.py     choose the format of each weight: exact, or rounded to bf16, int8 or int4
    blocks.py      lay out the blocks of GGUF files for the kernels
    vocabulary.py  sums, entropies and argmaxes over the vocabulary
    graphs.py      CUDA: a forward of each shape captured once
    build.py       compile the kernels
    library.py     load the kernels and describe their structs
    fast.py        choose a runtime, and put it into a model

Weights are used in place, not copied, and the modeling code is not changed.
"""

from specdec.model.runtime.decoder import FusedDecoder
from specdec.model.runtime.fast import FastRuntime, choose_runtime, linear
from specdec.model.runtime.few_rows import NotCovered
from specdec.model.runtime.graphs import CapturedForwards
from specdec.model.runtime.packed import packed_modules, unpacked
from specdec.model.runtime.storage import pack

__all__ = [
    "CapturedForwards",
    "FastRuntime",
    "FusedDecoder",
    "NotCovered",
    "choose_runtime",
    "linear",
    "pack",
    "packed_modules",
    "unpacked",
]
