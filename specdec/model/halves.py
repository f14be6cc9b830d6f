"""Run only the first layers of a target, or only the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from specdec.errors import InputError
from specdec.model.block import Block, TargetOutput
from specdec.model.cache import TreeCache
from specdec.model.runtime import CapturedForwards

if TYPE_CHECKING:
    from specdec.model.target import TargetModel


class Halves:
    """The two halves of a target's forwards; `lower` and then `upper` give what `TargetModel.forward` gives.

    Both write keys and values of their layers to the cache's block. `depth` is the number of layers of the lower half.
    """

    def __init__(self, target: TargetModel) -> None:
        self._target = target
        self._lower_views: dict[int, Any] = {}  # views of the model, by depth
        self._upper_views: dict[int, Any] = {}
        self._captures: dict[tuple[str, int], CapturedForwards] = {}  # captured forwards, by half and depth

    @property
    def device(self) -> torch.device:
        return self._target.device

    @torch.inference_mode()
    def lower(self, cache: TreeCache, block: Block, depth: int) -> Float[Tensor, "batch new dim"]:
        """Run the first `depth` layers. Return the residual stream after them.

        Raises:
            InputError: see `require_layer`.
        """
        target = self._target
        target.prepare(cache, block)
        self.require_layer(depth)
        if fused := target.fused_for(cache):
            return fused.lower(cache, block, depth)
        run = partial(self._lower, self._lower_view(depth), not cache.empty)
        return self._captured("lower", depth, run, cache, block)(cache, block)[0]

    @torch.inference_mode()
    def upper(
        self, cache: TreeCache, block: Block, residual: Float[Tensor, "batch new dim"], depth: int
    ) -> TargetOutput:
        """Run all layers but the first `depth`, final norm and output layer.

        Args:
            cache: the cache of both halves.
            block: as in `lower`; its tokens tell which nodes are padding.
            residual: the residual stream after the first `depth` layers. With depth 0 it replaces the embeddings.
            depth: number of layers to leave out.
        """
        target = self._target
        target.prepare(cache, block)
        if fused := target.fused_for(cache):
            return TargetOutput(*fused.forward(cache, block, depth, residual))
        run = partial(self._upper, self._upper_view(depth), not cache.empty)
        return TargetOutput(*self._captured("upper", depth, run, cache, block)(cache, block, residual))

    @torch.inference_mode()
    def read_out(self, residual: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new vocab"]:
        """Compute the logits of a residual stream that leaves the model here: apply final norm and output layer."""
        target = self._target
        if target.fused is not None and target.fused.reads_weights:
            return target.fused.read_out(residual)
        ids = torch.zeros(residual.shape[:2], dtype=torch.long, device=target.device)
        view = self._upper_view(target.depth)
        logits: Tensor = view(input_ids=ids, position_ids=ids, use_cache=False, entering=residual).logits
        target.modules.forget()
        return logits

    def require_layer(self, depth: int, option: str = "drafter.exit_layer") -> None:
        """Refuse an exit layer before which no layer has run, or after which no layer is left.

        `option`: name used in error messages.

        Raises:
            InputError: `depth` is not within 1 and the number of layers less 1.
        """
        last = self._target.depth - 1
        if not 1 <= depth <= last:
            expected = f"1 to {last}, fewer than the {last + 1} layers of the target {self._target.name}"
            raise InputError(option, expected=expected, got=depth, fix="choose a layer between")

    def _lower(self, view: Any, prefix: bool, cache: TreeCache, block: Block) -> tuple[Tensor]:
        return (self._target.modules.residual(view, self._target.kernel, cache, block, prefix),)

    def _upper(
        self, view: Any, prefix: bool, cache: TreeCache, block: Block, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._target.modules.run(view, self._target.kernel, cache, block, prefix, entering=residual)

    def _captured(
        self, half: str, depth: int, run: Callable[..., tuple[Tensor, ...]], cache: TreeCache, block: Block
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Return the captured forwards of a half if they cover this block, else `run` itself."""
        graphs = self._target.graphs_for(cache, block)
        if graphs is None:
            return run
        if (half, depth) not in self._captures:
            self._captures[half, depth] = CapturedForwards(run, graphs.capture)
        return self._captures[half, depth]

    def _lower_view(self, depth: int) -> Any:
        if depth not in self._lower_views:
            self._lower_views[depth] = self._target.parts.lower(self._target.model, depth)
        return self._lower_views[depth]

    def _upper_view(self, depth: int) -> Any:
        if depth not in self._upper_views:
            self._upper_views[depth] = self._target.parts.upper(self._target.model, depth)
        return self._upper_views[depth]
