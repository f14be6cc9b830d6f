"""flash-attn 2 on CUDA (arXiv 2307.08691), with split keys for few queries and a long prefix.

Both parts go through `flash_attn_with_kvcache`. It takes lengths per row on the device, supports
grouped queries, and returns the log-sum-exp. Its layout is (batch, seq, heads, dim).
"""

from __future__ import annotations

from importlib import import_module

import torch

from specdec.errors import InputError
from specdec.model.attention.context import AttentionContext
from specdec.model.attention.protocol import Keys, Lse, Out, Query, Values

MAX_HEAD_DIM = 256


class FlashAttn:
    """Uses the package flash-attn on CUDA.

    Raises:
        InputError: the package is not installed.
    """

    name = "flash_attn"
    on_host = False

    def __init__(self) -> None:
        try:
            self._with_kvcache = import_module("flash_attn").flash_attn_with_kvcache
        except ImportError as error:
            raise InputError(
                "target.kernel",
                expected="flash-attn to be installed for kernel=flash_attn",
                got=f"'{error}'",
                fix='pip install -e ".[gpu]" on a CUDA machine, or use kernel=auto',
            ) from error

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        return (
            query.is_cuda
            and query.dtype in (torch.float16, torch.bfloat16)
            and query.shape[-1] <= MAX_HEAD_DIM
            and keys.shape[-1] == values.shape[-1]
        )

    def prefix(
        self, query: Query, keys: Keys, values: Values, context: AttentionContext, scale: float
    ) -> tuple[Out, Lse]:
        out, lse = self._attend(query, keys, values, context.seen, False, scale)
        return out, lse.masked_fill(context.nothing_seen, -torch.inf)  # flash-attn returns plus infinity there

    def causal(self, query: Query, keys: Keys, values: Values, scale: float) -> tuple[Out, Lse]:
        return self._attend(query, keys, values, None, True, scale)

    def _attend(
        self, query: Query, keys: Keys, values: Values, lengths: torch.Tensor | None, causal: bool, scale: float
    ) -> tuple[Out, Lse]:
        out, lse = self._with_kvcache(
            query.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            cache_seqlens=None if lengths is None else lengths.int(),
            softmax_scale=scale,
            causal=causal,
            return_softmax_lse=True,
        )
        return out.transpose(1, 2), lse
