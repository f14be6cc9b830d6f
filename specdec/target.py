"""TargetModel: any `transformers` causal LM, unmodified, driven with trees.

A draft model is driven through the same class. Knows token ids and tensors; no tokenizer logic, no
drafter, no acceptance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.attention import ATTENTION_NAME, AttentionContext, choose_kernel
from specdec.cache import LayerShape, TreeCache
from specdec.errors import InputError
from specdec.runtime import CapturedForwards, FusedDecoder, NotCovered, choose_runtime
from specdec.tree import TokenTree

FUSED_TOLERANCE = 1e-3  # of the largest value: between rounding (1e-6) and another computation (1)
PREFILL_CHUNK = 256  # tokens of a prompt per forward: bounds activation memory, long enough for the matrix units


@dataclass(frozen=True)
class TargetOutput:
    """logits [batch kept vocab]; hidden [batch new dim]: the decoder's last hidden states, after its final
    norm (what the output layer, Medusa heads and the like read)."""

    logits: Float[Tensor, "batch kept vocab"]
    hidden: Float[Tensor, "batch new dim"]


class TargetModel:
    """Wraps a loaded model; its weights and its modeling code stay as they are.

    model: a causal LM in eval mode; name: how it is called in results; kernel: see `choose_kernel`;
    runtime: see `choose_runtime`; tokenizer: kept beside the model for the entry points and for comparing vocabularies.

    Raises:
        InputError: the architecture does not route its attention through `AttentionInterface`, or the
            kernel cannot be had.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        kernel: str = "auto",
        runtime: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.name, self.tokenizer = model.eval(), name, tokenizer
        self.kernel = choose_kernel(kernel, self.device)
        self._hidden: Tensor | None = None
        self._stock_attention = model.config._attn_implementation  # what transformers chose
        self.runtime = choose_runtime(runtime, self.model)
        self._ours()
        if model.config._attn_implementation != ATTENTION_NAME:
            raise self._unsupported("its attention cannot be exchanged")
        self.model.base_model.register_forward_hook(self._remember_hidden)
        self.fused: FusedDecoder | None = None
        self.graphs: CapturedForwards | None = None
        self.layers = self._probe()
        if self.runtime is not None:
            self.fused = self._fused_decoder()
        elif runtime != "stock" and self.device.type == "cuda":
            self.graphs = CapturedForwards(self._modules)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Number of logits; may exceed the number of tokens (padded vocabularies)."""
        return self.model.config.get_text_config().vocab_size

    @property
    def context_window(self) -> int | None:
        """Longest text in tokens, None when the config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def eos(self) -> frozenset[int]:
        """Token ids that end a text."""
        generation, config = self.model.generation_config, self.model.config.get_text_config()
        ids = generation.eos_token_id if generation is not None else None
        ids = ids if ids is not None else getattr(config, "eos_token_id", None)
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def new_cache(self, batch: int, capacity: int) -> TreeCache:
        """Storage for `batch` rows of at most `capacity` tokens, one tree included."""
        return TreeCache(self.layers, batch, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward(
        self,
        cache: TreeCache,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch block"],
        mask: Bool[Tensor, "batch new block"] | None,
        logits_at: Int[Tensor, "batch kept"] | None = None,
    ) -> TargetOutput:
        """One forward over the last `new` nodes of a block behind each row's committed prefix.

        tokens: -1 is padding, whose results mean nothing; positions: of all `block` nodes of the block; mask: which of
        them each new node sees, None for a causal chain; logits_at: the new nodes to compute logits for, None for all.
        """
        assert cache.has_room(positions.shape[1]), "the cache is too small for this block"
        if self.fused is not None and self.fused.covers(cache):
            return TargetOutput(*self.fused.forward(cache, tokens, positions, mask, logits_at))
        tokens = tokens.clamp(min=0)  # padding needs some embedding; nobody sees it
        prefix = max(cache.host_lengths) > 0
        if self.graphs is not None and prefix and self.graphs.covers(tokens, mask):
            return TargetOutput(*self.graphs(cache, tokens, positions, mask, logits_at))
        return TargetOutput(*self._modules(cache, tokens, positions, mask, logits_at, prefix))

    def _modules(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        logits_at: Tensor | None,
        prefix: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """(logits, hidden) by the model's own modules. Waits for nothing and reads no number on the host, so that it
        can be captured once and replayed at other lengths."""
        new = tokens.shape[1]
        tree = AttentionContext(
            self.kernel, cache, cache.lengths, cache.host_lengths, positions, new, mask, prefix=prefix
        )
        cache.open_block(tree.block - new, new)
        # tables of learned positions end at the context window; only padding ever stands behind it
        last = (self.context_window or cache.capacity) - 1
        out = self.model(
            input_ids=tokens,
            position_ids=positions[:, -new:].clamp(max=last),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0 if logits_at is None else logits_at,
            tree=tree,
        )
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return out.logits, hidden

    def forward_tree(self, cache: TreeCache, tree: TokenTree) -> TargetOutput:
        """Logits and hidden states at every node of the tree; its KV waits for `cache.keep(path)`."""
        positions = cache.lengths[:, None] + tree.depth
        return self.forward(cache, tree.tokens, positions, tree.ancestor_mask)

    def prefill(self, cache: TreeCache, rows: Sequence[Sequence[int]]) -> TargetOutput:
        """Append `rows` (token lists of any lengths >= 1) to the cache and commit them.

        Returns logits [batch 1 vocab] at each row's last token, and hidden [batch longest dim] of all
        appended tokens, padded on the right.
        """
        left = [list(row) for row in rows]
        last: list[Tensor | None] = [None] * len(left)
        hidden = []
        while any(left):
            new = min(max(map(len, left)), PREFILL_CHUNK)
            chunk = [row[:new] for row in left]
            tokens = torch.tensor([row + [-1] * (new - len(row)) for row in chunk], device=self.device)
            positions = cache.lengths[:, None] + torch.arange(new, device=self.device)
            ends = torch.tensor([[max(len(row) - 1, 0)] for row in chunk], device=self.device)
            out = self.forward(cache, tokens, positions, None, ends)
            for r, row in enumerate(left):
                if row:
                    last[r] = out.logits[r]
            hidden.append(out.hidden)
            cache.advance([len(row) for row in chunk])
            left = [row[new:] for row in left]
        return TargetOutput(torch.stack([logits for logits in last if logits is not None]), torch.cat(hidden, 1))

    @contextmanager
    def stock(self) -> Iterator[PreTrainedModel]:
        """The model as `transformers` runs it by itself, for references and oracles."""
        if self.runtime is not None:
            self.runtime.remove()
        self.model.set_attn_implementation(self._stock_attention)
        try:
            yield self.model
        finally:
            self._ours()
            self._hidden = None

    def _ours(self) -> None:
        self.model.set_attn_implementation(ATTENTION_NAME)
        if self.runtime is not None:
            self.runtime.install()

    def _remember_hidden(self, _module: torch.nn.Module, _args: object, output: object) -> None:
        self._hidden = output.last_hidden_state  # type: ignore[attr-defined]

    def _probe(self) -> list[LayerShape]:
        """Run one token through the stock model to learn every layer's KV shape, then one through ours."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.inference_mode(), self.stock() as model:
            filled = model(input_ids=token, use_cache=True).past_key_values
        try:
            layers = [(k.keys.shape[1], k.keys.shape[3], k.values.shape[3]) for k in filled.layers]
            self.prefill(TreeCache(layers, 1, 1, self.dtype, self.device), [[0]])
        except (AttributeError, TypeError) as error:
            raise self._unsupported(str(error)) from error
        return layers

    @torch.inference_mode()
    def _fused_decoder(self) -> FusedDecoder | None:
        """The layers in one call, where the kernel knows the modules and computes what the model computes."""
        try:
            fused = FusedDecoder(self.model)
            cache = self.new_cache(1, 6)
            self.prefill(cache, [[1, 2]])
            tree = TokenTree.from_rows([[3, 4, 5, 6]], [[-1, 0, 0, 2]])
            theirs = self.forward_tree(cache, tree)
            positions = cache.lengths[:, None] + tree.depth
            ours = TargetOutput(*fused.forward(cache, tree.tokens, positions, tree.ancestor_mask, None))
            off = max(_apart(ours.logits, theirs.logits), _apart(ours.hidden, theirs.hidden))
            if not off <= FUSED_TOLERANCE:
                raise NotCovered(f"its layers are wired differently (results {off:.0e} apart)")
        except NotCovered as reason:
            warnings.warn(f"{type(self.model).__name__} runs module by module: {reason}", stacklevel=3)
            return None
        return fused

    def _unsupported(self, why: str) -> InputError:
        return InputError(
            "target",
            expected="a causal LM whose attention goes through transformers' AttentionInterface and a KV cache",
            got=f"{type(self.model).__name__} ({why})",
            fix="choose another model, or update transformers",
        )


def _apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())
