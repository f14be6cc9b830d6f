"""How the products of an unmodified model are computed.

`stock` leaves them to PyTorch. `fast` gives every `nn.Linear` in fp32 on a CPU a product made for few rows,
which reads the weights once at memory speed: a verify step of 8 tokens then costs what a decode step costs.
The weights are shared, not copied, and the modeling code is not touched.
"""

from specdec.runtime.fast import FastRuntime, choose_runtime, linear

__all__ = ["FastRuntime", "choose_runtime", "linear"]
