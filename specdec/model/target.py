"""TargetModel: any `transformers` causal LM, unmodified, driven with trees.

A draft model is driven through the same class. Knows token ids and tensors; no tokenizer logic, no
drafter, no acceptance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.model.attention import ATTENTION_NAME, choose_kernel
from specdec.model.block import Block, TargetOutput
from specdec.model.cache import KVShape, LentCaches, TreeCache
from specdec.model.halves import Halves
from specdec.model.kv_layout import kv_layout, require_forgettable
from specdec.model.layers import DecoderLayers, last_hidden_states
from specdec.model.loading.quiet import quiet
from specdec.model.modules import ModuleForwards
from specdec.model.proof import ForwardPath, admitted
from specdec.model.rope import RopeRuntime, stretched_window
from specdec.model.runtime import CapturedForwards, FusedDecoder, NotCovered, choose_runtime, unpacked
from specdec.trees.transfer import on_device
from specdec.trees.tree import TokenTree

PREFILL_CHUNK = 256  # tokens of a prompt per forward: bounds activation memory, long enough for the matrix units


class TargetModel:
    """Wraps a loaded model. Its weights and its modeling code stay as they are.

    Args:
        model: a causal LM in eval mode.
        name: its name in results.
        kernel: see `choose_kernel`.
        runtime: see `choose_runtime`.
        tokenizer: kept beside the model, for the entry points and for comparing vocabularies.
        layer_path: name of the list of its decoder layers, if it cannot be found (see `DecoderLayers`).
        prove: compare its forwards with the stock model's (see `specdec.model.proof`), and use the fastest path that
            agrees.
        chat_template_kwargs: variables for the tokenizer's chat template, kept for `PromptEncoder`.

    Raises:
        InputError: the architecture does not route its attention through `AttentionInterface`, its forwards differ from
            the stock model's, or the kernel is not available.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        kernel: str = "auto",
        runtime: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        layer_path: str | None = None,
        prove: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.name, self.tokenizer = model.eval(), name, tokenizer
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.gguf: Path | None = None  # the GGUF file that it was read from, for rivals that read it themselves
        self._layer_path = layer_path
        self.kernel = choose_kernel(kernel, self.device)
        self.stock_attention = _stock_attention(model)
        self.runtime, self.rope = choose_runtime(runtime, self.model), RopeRuntime(self.model)
        self._ours()
        self.fused: FusedDecoder | None = None
        self.not_fused = ""  # why its layers are not one call
        self.graphs: CapturedForwards | None = None
        self.modules, self.halves = ModuleForwards(self.model), Halves(self)
        self._sources: Mapping[int, int] | None = None  # see `TreeCache`
        self.kv_shapes = self._probe()
        text: Any = model.config.get_text_config()
        windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self._caches = LentCaches(self.new_cache, [window for window in windows if isinstance(window, int)])
        if self.runtime is not None:
            self.fused = self._fused_decoder()
        elif runtime != "stock" and self.device.type == "cuda":
            self.graphs = CapturedForwards(self._run_modules)
        self._built = (self.fused, self.runtime, self.graphs, self.kernel)
        self.proof = admitted(self, kernel, runtime) if prove else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Number of logits. May exceed the number of tokens (padded vocabularies)."""
        return self.model.config.get_text_config().vocab_size

    @property
    def context_window(self) -> int | None:
        """Longest text in tokens, or None if the config gives none."""
        return stretched_window(self.model.config.get_text_config())

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.kv_shapes)

    @property
    def skips_padding(self) -> bool:
        """Whether padding costs nothing: the time of a forward depends on the real nodes of all rows only."""
        return self.fused is not None

    @property
    def eos(self) -> frozenset[int]:
        """Token ids that end a text."""
        generation, config = self.model.generation_config, self.model.config.get_text_config()
        ids = generation.eos_token_id if generation is not None else None
        ids = ids if ids is not None else getattr(config, "eos_token_id", None)
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def new_cache(self, batch: int, capacity: int) -> TreeCache:
        """Allocate a cache for `batch` rows of at most `capacity` tokens, one tree included."""
        return TreeCache(self.kv_shapes, batch, capacity, self.dtype, self.device, self._sources)

    def lend_cache(self, holder: object, batch: int, capacity: int) -> TreeCache:
        """Return a cache as `new_cache` does, reusing the storage for every batch of that size while `holder` lives
        (`LentCaches`)."""
        return self._caches.lend(holder, batch, capacity)

    @torch.inference_mode()
    def forward(self, cache: TreeCache, block: Block) -> TargetOutput:
        """Run one forward over the new nodes of a block. Their keys and values are written to the cache's block."""
        self.prepare(cache, block)
        if fused := self.fused_for(cache):
            return TargetOutput(*fused.forward(cache, block))
        run = self.graphs_for(cache, block) or partial(self._run_modules, prefix=not cache.empty)
        return TargetOutput(*run(cache, block))

    def prepare(self, cache: TreeCache, block: Block) -> None:
        """Get ready for a forward, of all layers or of some: check the room, and read the lengths that rotary
        embeddings depend on."""
        assert cache.has_room(block.size), "the cache is too small for this block"
        self.rope.read(cache.prompts)

    def fused_for(self, cache: TreeCache) -> FusedDecoder | None:
        """Return the fused layers if they cover this cache."""
        return self.fused if self.fused is not None and self.fused.covers(cache) else None

    def graphs_for(self, cache: TreeCache, block: Block) -> CapturedForwards | None:
        """Return the captured forwards if they cover this block. All of them are captured with a prefix."""
        return self.graphs if self.graphs is not None and not cache.empty and self.graphs.covers(block) else None

    def _run_modules(self, cache: TreeCache, block: Block, prefix: bool = True) -> tuple[Tensor, Tensor]:
        return self.modules.run(self.model, self.kernel, cache, block, prefix)

    @cached_property
    def parts(self) -> DecoderLayers:
        """The model's layers, for callers that run only some of them.

        Raises:
            InputError: they cannot be found.
        """
        with self.stock() as model:
            return DecoderLayers(model, self.depth, self._layer_path)

    def forward_tree(self, cache: TreeCache, tree: TokenTree) -> TargetOutput:
        """Compute logits and hidden states at every node of the tree. Its KV stays in the block until
        `cache.keep(path)`."""
        return self.forward(cache, Block.of_tree(cache, tree))

    def prefill(self, cache: TreeCache, rows: Sequence[Sequence[int]], exit_layer: int | None = None) -> TargetOutput:
        """Append `rows` (token lists of any lengths >= 1) to the cache and commit them.

        Returns:
            Logits [batch 1 vocab] at each row's last token, and hidden [batch longest dim] of all appended tokens,
            padded on the right. With an exit layer also the residual stream after it, [batch longest dim].
        """
        left = [list(row) for row in rows]
        cache.begin([len(row) for row in rows])
        last: list[Tensor | None] = [None] * len(left)
        hidden, residuals = [], []
        while any(left):
            new = min(max(map(len, left)), PREFILL_CHUNK)
            chunk = [row[:new] for row in left]
            tokens = on_device([row + [-1] * (new - len(row)) for row in chunk], self.device)
            ends = on_device([[max(len(row) - 1, 0)] for row in chunk], self.device)
            block = Block.chain(cache, tokens, ends)
            if exit_layer is None:
                out = self.forward(cache, block)
            else:
                residuals.append(self.halves.lower(cache, block, exit_layer))
                out = self.halves.upper(cache, block, residuals[-1], exit_layer)
            for r, row in enumerate(left):
                if row:
                    last[r] = out.logits[r]
            hidden.append(out.hidden)
            cache.advance([len(row) for row in chunk])
            left = [row[new:] for row in left]
        logits = torch.stack([row for row in last if row is not None])
        return TargetOutput(logits, torch.cat(hidden, 1), torch.cat(residuals, 1) if residuals else None)

    @contextmanager
    def stock(self) -> Iterator[PreTrainedModel]:
        """Lend the model as `transformers` runs it by itself, for references and oracles.

        Packed weights are widened to ordinary fp32 weights first and freed afterwards: changes to them are lost.
        """
        self.rope.remove()
        if self.runtime is not None:
            self.runtime.remove()
        self.model.set_attn_implementation(self.stock_attention)
        try:
            with unpacked(self.model):
                yield self.model
        finally:
            self._ours()
            self.modules.forget()

    @property
    def path(self) -> ForwardPath:
        """The path that its forwards take."""
        fast = self.runtime is not None or self.graphs is not None
        return ForwardPath(self.fused is not None, fast, self.kernel.name)

    def run_on(self, path: ForwardPath) -> None:
        """Switch off what `path` does without, compared with the path the target was built on."""
        fused, runtime, graphs, kernel = self._built
        if self.runtime is not None:
            self.runtime.remove()
        self.fused = fused if path.fused else None
        self.runtime, self.graphs = (runtime, graphs) if path.fast else (None, None)
        self.kernel = kernel if kernel.name == path.kernel else choose_kernel(path.kernel, self.device)
        if self.runtime is not None:
            self.runtime.install()

    def _ours(self) -> None:
        self.model.set_attn_implementation(ATTENTION_NAME)
        self.rope.install()
        if self.runtime is not None:
            self.runtime.install()

    def _probe(self) -> list[KVShape]:
        """Run a few tokens through the stock model to learn every layer's KV shape, then one token through this class.

        Raises:
            InputError: why the model cannot be driven with trees.
        """
        try:
            with self.stock() as model, quiet(), last_hidden_states(model) as seen:
                require_forgettable(model)
            if self.model.config._attn_implementation != ATTENTION_NAME:
                raise AttributeError("its attention cannot be exchanged")
            self.modules.watch(seen[-1][0])
            layout = kv_layout(self.model)
            self._sources = layout.sources
            self.prefill(TreeCache(layout.shapes, 1, 1, self.dtype, self.device, layout.sources), [[0]])
        except InputError:
            raise
        except Exception as error:  # a model that is driven in an unexpected way may fail in any way
            raise self._unsupported(str(error).split("\n", 1)[0] or type(error).__name__) from error
        return layout.shapes

    def _fused_decoder(self) -> FusedDecoder | None:
        """Return all layers as one call if the kernel knows their modules, else None. Whether it computes the same is
        left to the proof."""
        try:
            return FusedDecoder(self.model)
        except NotCovered as reason:
            self.not_fused = str(reason)
            warnings.warn(f"{type(self.model).__name__} runs module by module: {reason}", stacklevel=3)
            return None

    def _unsupported(self, why: str) -> InputError:
        return InputError(
            "target",
            expected="a causal LM whose attention goes through transformers' AttentionInterface and a KV cache",
            got=f"{type(self.model).__name__} ({why})",
            fix="choose another model, or update transformers",
        )


def _stock_attention(model: PreTrainedModel) -> str:
    """Return the attention implementation that transformers chose, or would choose if another target has
    replaced it."""
    if model.config._attn_implementation == ATTENTION_NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    return str(model.config._attn_implementation)
