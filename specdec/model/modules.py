"""Run a block through the model's own modules, as PyTorch computes them."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.model.attention import AttentionContext
from specdec.model.attention.protocol import Kernel
from specdec.model.block import Block
from specdec.model.cache import TreeCache, cache_argument
from specdec.model.rope import stretched_window


class ModuleForwards:
    """Forwards of a model, or of a view of it that leaves layers out.

    They wait for nothing and read no number on the host, so that a forward can be captured once and replayed at other
    lengths.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._selects_logits = "logits_to_keep" in signature(model.forward).parameters
        self._cache_argument = cache_argument(model)
        # tables of learned positions end at the context window; only padding lies behind it
        self._window = stretched_window(model.config.get_text_config())
        self._hidden: Tensor | None = None

    def watch(self, last: nn.Module) -> None:
        """Read the hidden states of this module: its `last_hidden_state` is the input of the output layer."""
        last.register_forward_hook(self._remember)

    def run(
        self, model: Any, kernel: Kernel, cache: TreeCache, block: Block, prefix: bool, **kwargs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute (logits [batch kept vocab], hidden [batch new dim]).

        Args:
            model: the model, or a view of it that ends with the output layer.
            kernel: attention kernel.
            cache: holds the prefix; the new keys and values are written to its block.
            block: the nodes.
            prefix: as in `AttentionContext`.
            kwargs: further arguments of the model's forward.
        """
        inputs = self._inputs(kernel, cache, block, prefix)
        if self._selects_logits and block.logits_at is not None:
            inputs["logits_to_keep"] = block.logits_at
        logits: Tensor = model(**inputs, **kwargs).logits
        if not self._selects_logits and block.logits_at is not None:
            logits = torch.take_along_dim(logits, block.logits_at[..., None], 1)
        cache.close_block()
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return logits, hidden

    def residual(self, model: Any, kernel: Kernel, cache: TreeCache, block: Block, prefix: bool) -> Tensor:
        """Compute the residual stream [batch new dim] with a view of the model that ends before the final norm.

        Arguments as in `run`.
        """
        residual: Tensor = model(**self._inputs(kernel, cache, block, prefix)).last_hidden_state
        cache.close_block()
        self.forget()
        return residual

    def forget(self) -> None:
        """Free the hidden states of a forward that was not made by `run`."""
        self._hidden = None

    def _inputs(self, kernel: Kernel, cache: TreeCache, block: Block, prefix: bool) -> dict[str, Any]:
        """Open the block that a forward writes to, and return the keyword arguments of its modules."""
        tree = AttentionContext(
            kernel, cache, cache.lengths, cache.host_lengths, block.positions, block.new, block.mask,
            prefix=prefix,
        )  # fmt: skip
        cache.open_block(tree)
        last = (self._window or cache.capacity) - 1
        return {
            "input_ids": block.tokens.clamp(min=0),  # padding needs some embedding; no real node sees it
            "position_ids": block.positions[:, -block.new :].clamp(max=last),
            self._cache_argument: cache,
            "use_cache": True,
            "tree": tree,
        }

    def _remember(self, _module: nn.Module, _args: object, output: Any) -> None:
        self._hidden = output.last_hidden_state
