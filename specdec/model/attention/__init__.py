"""Tree attention on unmodified `transformers` models, one file per kernel.

On CUDA one launch of our Triton kernel computes a layer (`tree_flash`, a `protocol.TreeKernel`).

Library kernels (`protocol.PrefixKernel`) have no mask argument. With them, attention over "committed prefix + tree" is
computed exactly in two parts, which are merged by their log-sum-exp (`two_parts.py`):

    prefix   every node sees all of it: no mask, any flash kernel
    block    the new nodes among themselves: a tiny masked product, or a causal one for a prompt

A kernel is one file: `aten_flash` (CPU), `tree_flash` and `flash_attn` (CUDA), `dense`. The last is the reference, and
computes what a kernel does not support (`supports`): for flash-attn fp32, sliding windows, soft caps and sinks.
"""

from specdec.model.attention.context import AttentionContext
from specdec.model.attention.registry import KERNELS, choose_kernel
from specdec.model.attention.tree_attention import ATTENTION_NAME

__all__ = ["ATTENTION_NAME", "KERNELS", "AttentionContext", "choose_kernel"]
