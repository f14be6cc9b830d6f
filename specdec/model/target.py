"""TargetModel: any `transformers` causal LM, unmodified, driven with trees.

A draft model is driven through the same class. Knows token ids and tensors; no tokenizer logic, no
drafter, no acceptance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.errors import InputError
from specdec.model.attention import ATTENTION_NAME, AttentionContext, choose_kernel
from specdec.model.cache import LayerShape, LentCaches, TreeCache, cache_argument
from specdec.model.kv_layout import kv_layout, require_forgettable
from specdec.model.layers import DecoderLayers, last_hidden_states
from specdec.model.loading.quiet import quiet
from specdec.model.proof import Path, admitted
from specdec.model.rope import RopeRuntime, stretched_window
from specdec.model.runtime import CapturedForwards, FusedDecoder, NotCovered, choose_runtime
from specdec.trees.tree import TokenTree

PREFILL_CHUNK = 256  # tokens of a prompt per forward: bounds activation memory, long enough for the matrix units


@dataclass(frozen=True)
class TargetOutput:
    """The result of a forward.

    Args:
        logits: [batch kept vocab].
        hidden: the last hidden states, after the final norm, [batch new dim]: the input of the output layer and of
            Medusa heads.
        residual: the residual stream after the exit layer, [batch new dim]; None without an exit layer.
    """

    logits: Float[Tensor, "batch kept vocab"]
    hidden: Float[Tensor, "batch new dim"]
    residual: Float[Tensor, "batch new dim"] | None = None


class TargetModel:
    """Wraps a loaded model. Its weights and its modeling code stay as they are.

    Args:
        model: a causal LM in eval mode.
        name: its name in results.
        kernel: see `choose_kernel`.
        runtime: see `choose_runtime`.
        tokenizer: kept beside the model, for the entry points and for comparing vocabularies.
        layers: name of the list of its decoder layers, if it cannot be found (see `DecoderLayers`).
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
        layers: str | None = None,
        prove: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.name, self.tokenizer = model.eval(), name, tokenizer
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._layers_path = layers
        self.kernel = choose_kernel(kernel, self.device)
        self._hidden: Tensor | None = None
        self._selects_logits = "logits_to_keep" in signature(model.forward).parameters
        self.stock_attention = _stock_attention(model)
        self.runtime, self._rope = choose_runtime(runtime, self.model), RopeRuntime(self.model)
        self._ours()
        self.fused: FusedDecoder | None = None
        self.not_fused = ""  # why its layers are not one call
        self.graphs: CapturedForwards | None = None
        self._halves: dict[tuple[str, int], Any] = {}  # views of the model that run one half, by (half, layers)
        self._captures: dict[tuple[str, int], CapturedForwards] = {}  # captured forwards of these views
        self._sources: Mapping[int, int] | None = None  # see `TreeCache`
        self.layers = self._probe()
        text: Any = model.config.get_text_config()
        windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
        self._caches = LentCaches(self.new_cache, [window for window in windows if isinstance(window, int)])
        if self.runtime is not None:
            self.fused = self._fused_decoder()
        elif runtime != "stock" and self.device.type == "cuda":
            self.graphs = CapturedForwards(self._modules)
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
        return TreeCache(self.layers, batch, capacity, self.dtype, self.device, self._sources)

    def lend_cache(self, holder: object, batch: int, capacity: int) -> TreeCache:
        """Return a cache as `new_cache` does, reusing the storage for every batch of that size while `holder` lives
        (`LentCaches`)."""
        return self._caches.lend(holder, batch, capacity)

    @torch.inference_mode()
    def forward(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        logits_at: Int[Tensor, "batch kept"] | None = None,
    ) -> TargetOutput:
        """Run one forward over the last `new` nodes of a block behind each row's committed prefix.

        Args:
            cache: holds the prefix; the new keys and values are written to its block.
            tokens: tokens of the new nodes. -1 is padding, whose results are undefined.
            positions: positions of all `block` nodes of the block.
            mask: which nodes of the block each new node sees; None for a causal chain.
            logits_at: the new nodes to compute logits for; None for all.
        """
        self._begin(cache, positions)
        if self.fused is not None and self.fused.covers(cache):
            return TargetOutput(*self.fused.forward(cache, tokens, positions, mask, logits_at))
        tokens = tokens.clamp(min=0)  # padding needs some embedding; no real node sees it
        prefix = max(cache.host_lengths) > 0
        if self.graphs is not None and prefix and self.graphs.covers(tokens, mask):
            return TargetOutput(*self.graphs(cache, tokens, positions, mask, logits_at))
        return TargetOutput(*self._modules(cache, tokens, positions, mask, logits_at, prefix))

    @cached_property
    def parts(self) -> DecoderLayers:
        """The model's layers, for callers that run only some of them.

        Raises:
            InputError: they cannot be found.
        """
        with self.stock() as model:
            return DecoderLayers(model, len(self.layers), self._layers_path)

    @torch.inference_mode()
    def lower(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        layers: int,
    ) -> Float[Tensor, "batch new dim"]:
        """Run the first half of a `forward`: the first `layers` layers.

        Their keys and values are written to the block as in a whole forward. `upper` continues from here; the two
        together give what `forward` gives.

        Args:
            cache: as in `forward`.
            tokens: as in `forward`.
            positions: as in `forward`.
            mask: as in `forward`.
            layers: number of layers to run.

        Returns:
            The residual stream after these layers, [batch new dim].

        Raises:
            InputError: see `require_layer`.
        """
        self._begin(cache, positions)
        self.require_layer(layers)
        if self.fused is not None and self.fused.covers(cache):
            return self.fused.lower(cache, tokens, positions, mask, layers)
        tokens, prefix = tokens.clamp(min=0), max(cache.host_lengths) > 0
        if self.graphs is not None and prefix and self.graphs.covers(tokens, mask):
            return self._captured("lower", layers)(cache, tokens, positions, mask)[0]
        return self._lower(cache, tokens, positions, mask, layers, prefix)

    @torch.inference_mode()
    def upper(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        stream: Float[Tensor, "batch new dim"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        layers: int,
        logits_at: Int[Tensor, "batch kept"] | None = None,
    ) -> TargetOutput:
        """Run the second half of a `forward`: all layers but the first `layers`.

        Args:
            cache: as in `forward`.
            tokens: as in `lower`; they tell which nodes are padding.
            stream: the residual stream after the first `layers` layers. With 0 layers it replaces the embeddings.
            positions: as in `forward`.
            mask: as in `forward`.
            layers: number of layers to leave out.
            logits_at: as in `forward`.
        """
        self._begin(cache, positions)
        if self.fused is not None and self.fused.covers(cache):
            return TargetOutput(*self.fused.forward(cache, tokens, positions, mask, logits_at, layers, stream))
        tokens, prefix = tokens.clamp(min=0), max(cache.host_lengths) > 0
        if self.graphs is not None and prefix and self.graphs.covers(tokens, mask):
            return TargetOutput(*self._captured("upper", layers)(cache, tokens, stream, positions, mask, logits_at))
        return TargetOutput(*self._upper(cache, tokens, stream, positions, mask, logits_at, layers, prefix))

    @torch.inference_mode()
    def read_out(self, stream: Float[Tensor, "batch new dim"]) -> Float[Tensor, "batch new vocab"]:
        """Compute the logits of a residual stream that leaves the model here: apply final norm and output layer."""
        if self.fused is not None and self.fused.reads_weights:
            return self.fused.read_out(stream)
        ids = torch.zeros(stream.shape[:2], dtype=torch.long, device=self.device)
        logits: Tensor = self._half("upper", self.parts.count)(
            input_ids=ids, position_ids=ids, use_cache=False, entering=stream
        ).logits
        self._hidden = None
        return logits

    def _begin(self, cache: TreeCache, positions: Tensor) -> None:
        assert cache.has_room(positions.shape[1]), "the cache is too small for this block"
        self._rope.read(cache.prompts)

    def require_one_rope(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Refuse texts that begin within the short factors of longrope and would grow past the length where the long
        ones begin, because transformers then reads the whole text again.

        Raises:
            InputError: names the first such prompt's length.
        """
        switch = self._rope.switch
        for length in map(len, prompts):
            if switch is not None and length <= switch < length + new - 1:
                raise InputError(
                    "prompt",
                    expected=f"prompt and new tokens on one side of {switch} tokens, where the rotary factors of "
                    f"{self.name} switch (longrope) and its whole text would have to be read again",
                    got=f"{length} + {new}",
                    fix=f"lower generation.max_new_tokens to {switch + 1 - length} or lengthen the prompt",
                )

    def require_layer(self, layers: int, what: str = "drafter.exit_layer") -> None:
        """Refuse an exit layer before which no layer has run, or after which no layer is left.

        `what`: name used in error messages.

        Raises:
            InputError: `layers` is not within 1 and the number of layers less 1.
        """
        last = len(self.layers) - 1
        if not 1 <= layers <= last:
            expected = f"1 to {last}, fewer than the {last + 1} layers of the target {self.name}"
            raise InputError(what, expected=expected, got=layers, fix="choose a layer between")

    def _modules(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        logits_at: Tensor | None,
        prefix: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute (logits, hidden) with the model's own modules.

        Waits for nothing and reads no number on the host, so that it can be captured once and replayed at other
        lengths. Arguments as in `forward`; `prefix` as in `AttentionContext`.
        """
        return self._whole(self.model, cache, tokens, positions, mask, logits_at, prefix)

    def _lower(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        layers: int,
        prefix: bool = True,
    ) -> Tensor:
        """Run `lower` with the model's own modules, without waiting.

        Arguments as in `lower`; `prefix` as in `AttentionContext`.
        """
        inputs = self._inputs(cache, tokens, positions, mask, prefix)
        stream: Tensor = self._half("lower", layers)(input_ids=tokens, **inputs).last_hidden_state
        cache.close_block()
        self._hidden = None
        return stream

    def _upper(
        self,
        cache: TreeCache,
        tokens: Tensor,
        stream: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        logits_at: Tensor | None,
        layers: int,
        prefix: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run `upper` with the model's own modules, without waiting.

        Arguments as in `upper`; `prefix` as in `AttentionContext`.
        """
        part = self._half("upper", layers)
        return self._whole(part, cache, tokens, positions, mask, logits_at, prefix, entering=stream)

    def _whole(
        self,
        model: PreTrainedModel,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        logits_at: Tensor | None,
        prefix: bool,
        **kwargs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run `model` (the whole model or its upper half) on a block, and return (logits, hidden).

        Arguments as in `_modules`; `kwargs` are further arguments of the model's forward.
        """
        inputs = self._inputs(cache, tokens, positions, mask, prefix)
        if self._selects_logits and logits_at is not None:
            inputs["logits_to_keep"] = logits_at
        out = model(input_ids=tokens, **inputs, **kwargs)
        logits = out.logits
        if not self._selects_logits and logits_at is not None:
            logits = torch.take_along_dim(logits, logits_at[..., None], 1)
        cache.close_block()
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return logits, hidden

    def _inputs(
        self, cache: TreeCache, tokens: Tensor, positions: Tensor, mask: Tensor | None, prefix: bool
    ) -> dict[str, Any]:
        """Open the block that a forward writes to, and return the keyword arguments of its modules.

        Arguments as in `_modules`.
        """
        new = tokens.shape[1]
        tree = AttentionContext(
            self.kernel, cache, cache.lengths, cache.host_lengths, positions, new, mask, prefix=prefix
        )
        cache.open_block(tree)
        # tables of learned positions end at the context window; only padding lies behind it
        last = (self.context_window or cache.capacity) - 1
        position_ids = positions[:, -new:].clamp(max=last)
        return {"position_ids": position_ids, cache_argument(self.model): cache, "use_cache": True, "tree": tree}

    def _captured(self, half: str, layers: int) -> CapturedForwards:
        """Return the captured half forwards at this layer."""
        self._half(half, layers)  # the view must be made before the capture begins
        if (half, layers) not in self._captures:

            def lower(cache: TreeCache, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
                return (self._lower(cache, tokens, positions, mask, layers),)

            def upper(
                cache: TreeCache, tokens: Tensor, stream: Tensor, positions: Tensor, mask: Tensor | None,
                logits_at: Tensor | None,
            ) -> tuple[Tensor, ...]:  # fmt: skip
                return self._upper(cache, tokens, stream, positions, mask, logits_at, layers)

            assert self.graphs is not None
            self._captures[half, layers] = CapturedForwards(lower if half == "lower" else upper, self.graphs.capture)
        return self._captures[half, layers]

    def _half(self, half: str, layers: int) -> Any:
        """Return the view that runs one half of the layers, made once."""
        if (half, layers) not in self._halves:
            view = self.parts.lower if half == "lower" else self.parts.upper
            self._halves[half, layers] = view(self.model, layers)
        return self._halves[half, layers]

    def forward_tree(self, cache: TreeCache, tree: TokenTree) -> TargetOutput:
        """Compute logits and hidden states at every node of the tree. Its KV stays in the block until
        `cache.keep(path)`."""
        positions = cache.lengths[:, None] + tree.depth
        return self.forward(cache, tree.tokens, positions, tree.ancestor_mask)

    def prefill(self, cache: TreeCache, rows: Sequence[Sequence[int]], exit_layer: int | None = None) -> TargetOutput:
        """Append `rows` (token lists of any lengths >= 1) to the cache and commit them.

        Returns:
            Logits [batch 1 vocab] at each row's last token, and hidden [batch longest dim] of all appended tokens,
            padded on the right. With an exit layer also the residual stream after it, [batch longest dim].
        """
        left = [list(row) for row in rows]
        cache.begin([len(row) for row in rows])
        last: list[Tensor | None] = [None] * len(left)
        hidden, streams = [], []
        while any(left):
            new = min(max(map(len, left)), PREFILL_CHUNK)
            chunk = [row[:new] for row in left]
            tokens = torch.tensor([row + [-1] * (new - len(row)) for row in chunk], device=self.device)
            positions = cache.lengths[:, None] + torch.arange(new, device=self.device)
            ends = torch.tensor([[max(len(row) - 1, 0)] for row in chunk], device=self.device)
            if exit_layer is None:
                out = self.forward(cache, tokens, positions, None, ends)
            else:
                streams.append(self.lower(cache, tokens, positions, None, exit_layer))
                out = self.upper(cache, tokens, streams[-1], positions, None, exit_layer, ends)
            for r, row in enumerate(left):
                if row:
                    last[r] = out.logits[r]
            hidden.append(out.hidden)
            cache.advance([len(row) for row in chunk])
            left = [row[new:] for row in left]
        stream = torch.cat(streams, 1) if streams else None
        return TargetOutput(
            torch.stack([logits for logits in last if logits is not None]), torch.cat(hidden, 1), stream
        )

    @contextmanager
    def stock(self) -> Iterator[PreTrainedModel]:
        """Lend the model as `transformers` runs it by itself, for references and oracles."""
        self._rope.remove()
        if self.runtime is not None:
            self.runtime.remove()
        self.model.set_attn_implementation(self.stock_attention)
        try:
            yield self.model
        finally:
            self._ours()
            self._hidden = None

    @property
    def path(self) -> Path:
        """The path that its forwards take."""
        return Path(self.fused is not None, self.runtime is not None or self.graphs is not None, self.kernel.name)

    def run_on(self, path: Path) -> None:
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
        self._rope.install()
        if self.runtime is not None:
            self.runtime.install()

    def _remember_hidden(self, _module: torch.nn.Module, _args: object, output: object) -> None:
        self._hidden = output.last_hidden_state  # type: ignore[attr-defined]

    def _probe(self) -> list[LayerShape]:
        """Run a few tokens through the stock model to learn every layer's KV shape, then one token through this class.

        Raises:
            InputError: why the model cannot be driven with trees.
        """
        try:
            with self.stock() as model, quiet(), last_hidden_states(model) as seen:
                require_forgettable(model)
            if self.model.config._attn_implementation != ATTENTION_NAME:
                raise AttributeError("its attention cannot be exchanged")
            seen[-1][0].register_forward_hook(self._remember_hidden)
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
