"""Tree attention on unmodified `transformers` models, one file per kernel.

flash-attn has no mask argument, so attention over "committed prefix + tree" is computed exactly in two parts, which are
merged by their log-sum-exp (`tree_attention.py`):

    prefix   every node sees all of it: no mask, any flash kernel
    block    the new nodes among themselves: a tiny masked product, or a causal one for a prompt

A kernel (`protocol.PrefixKernel`) is one file: `aten_flash` (CPU), `flash_attn` (CUDA), `dense`. The last is the
reference, and serves everything that flash cannot do: fp32 on CUDA, sliding windows, soft caps, sinks.
"""

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.registry import KERNELS, choose_kernel
from specdec.model.attention.tree_attention import ATTENTION_NAME

__all__ = ["ATTENTION_NAME", "KERNELS", "AttentionContext", "choose_kernel"]
