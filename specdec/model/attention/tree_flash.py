"""Our Triton kernel: one launch per layer checks the whole tree, on CUDA (`tree_flash_kernel.py`).

It computes what the two parts of `two_parts.py` and their merge compute. It also computes layers with sliding windows,
chunks, soft caps and sinks, which flash-attn leaves to `dense`. flash-attn, if installed, reads prompts beside it.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from specdec.errors import InputError
from specdec.model.attention.context import AttentionContext
from specdec.model.attention.flash_attn import FlashAttn
from specdec.model.attention.protocol import Keys, Out, PrefixKernel, Query, Values
from specdec.model.attention.two_parts import prefix_and_block

MAX_HEAD_DIM = 256
OLDEST = (3, 6)  # the Triton that comes with torch 2.11
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SHORT_CHAIN = 16  # longer chains are prompts, which flash-attn reads


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python on a CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def installed_version() -> str | None:
    """Return the version of the installed Triton, or None."""
    try:
        return version("triton") if find_spec("triton") is not None else None
    except PackageNotFoundError:
        return None


def lacking() -> str:
    """Describe which Triton the kernel lacks; "" if it can run."""
    found = installed_version()
    if found is None:
        return "no triton"
    numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
    return "" if numbers >= OLDEST else f"triton {found}"


class TreeFlash:
    """Uses our Triton kernel.

    Args:
        merge_in_launch: let the last program merge the shares of the keys, instead of a second launch.

    Raises:
        InputError: Triton is missing or too old.
    """

    name = "tree_flash"
    on_host = False

    def __init__(self, merge_in_launch: bool = True) -> None:
        if got := lacking():
            raise InputError(
                "target.kernel",
                expected=f"triton {'.'.join(map(str, OLDEST))} or newer for kernel=tree_flash",
                got=got,
                fix='pip install -e ".[triton]", or use kernel=auto',
            )
        self._merge = merge_in_launch
        self._launch: Any = import_module("specdec.model.attention.tree_flash_launch")
        has_flash = find_spec("flash_attn") is not None and not interpreted()
        self._prompts: PrefixKernel | None = FlashAttn() if has_flash else None

    def require_running(self, device: torch.device) -> None:
        """Compile the kernel and run it once.

        Raises:
            InputError: Triton fails on this machine (it needs a C compiler and a recent GPU).
        """
        query, stored = torch.ones(1, 1, 1, 64, device=device), torch.ones(1, 1, 2, 64, device=device)
        seen = self._launch.Seen(torch.ones(1, dtype=torch.long, device=device), 1, None)
        try:
            out = self._launch.attend(query, stored, stored, seen, 1.0)
            works, got = bool(out.eq(1).all()), "other numbers"
        except Exception as error:  # Triton, its C compiler and the driver each raise their own
            works, got = False, (str(error) or type(error).__name__).strip().splitlines()[0]
        if not works:
            raise InputError(
                "target.kernel",
                expected="a Triton that compiles and runs kernel=tree_flash",
                got=f"triton {installed_version()} on {device}: {got}",
                fix="install a C compiler, or use kernel=flash_attn or kernel=dense",
            )

    def supports(self, query: Query, keys: Keys, values: Values) -> bool:
        return (
            (query.is_cuda or interpreted())
            and query.dtype in DTYPES
            and query.dtype == keys.dtype == values.dtype
            and query.shape[-1] <= MAX_HEAD_DIM
            and keys.shape[-1] == values.shape[-1]
        )

    def attend(
        self,
        query: Query,
        keys: Keys,
        values: Values,
        context: AttentionContext,
        scale: float,
        mask: Tensor | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Out | None:
        if mask is not None and not context.is_interval(mask):
            return None
        plain = mask is None and softcap is None and sinks is None
        prompt = context.mask is None and context.new > SHORT_CHAIN
        if plain and prompt and self._prompts is not None and self._prompts.supports(query, keys, values):
            return prefix_and_block(self._prompts, context, query, keys, values, scale)
        seen = self._seen(context, mask)
        return self._launch.launched(query, keys, values, seen, scale, softcap, sinks, self._merge)

    def _seen(self, context: AttentionContext, mask: Tensor | None) -> Any:
        """Return which slots the nodes see, computed once per forward and mask."""
        for known, seen in context.scratch:
            if known is mask:
                return seen
        if mask is not None:
            first = mask[:, 0].int().argmax(-1)  # the first slot that is seen
            bits = self._launch.pack(context.in_block(mask[:, 0]))
        else:
            first, bits = None, None if context.mask is None else self._launch.pack(context.mask)
        seen = self._launch.Seen(context.lengths, context.block, bits, first)
        context.scratch.append((mask, seen))
        return seen
