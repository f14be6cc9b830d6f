"""TreeCache: the KV cache of one batch, allocated once, with a length per row.

    slots of a row   [ committed prefix | block: tree being verified | free ]
                     0            lengths[b]

A forward writes its nodes behind the prefix. `keep(path)` moves the accepted ones to the front of that region and
advances the row's length, so that nothing is computed twice:

    before            p p p | r a b c | . .      lengths[b] = 3
    keep([0, 2])      p p p r b | . . . . .      lengths[b] = 5

The cache depends on no model and no tree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache

from specdec.errors import InputError
from specdec.model.attention.context import AttentionContext
from specdec.model.cache_write import write
from specdec.trees import transfer
from specdec.trees.transfer import on_device

KVShape = tuple[int, int, int]  # kv heads, key dim, value dim
ROOM = 256  # a kept cache's capacity is a multiple of it, so that one serves many prompts
KEPT = 2  # batch sizes for which a holder keeps a cache: full batches, and the last, smaller one of a run


class TreeCache(Cache):
    """Preallocated KV storage for every layer.

    Args:
        kv_shapes: KV shape of each layer.
        batch: number of rows.
        capacity: slots per row (prompt + new tokens + one tree).
        dtype: dtype of keys and values.
        device: where they are kept.
        sources: maps each attention layer that reads cached keys and values unchanged to the layer of the cache that
            holds them. None: each layer reads its own. A cache layer that is no source is returned whole by `update`,
            so that the model can change it (see `specdec/model/kv_layout.py`).

    Raises:
        InputError: the storage does not fit into the free memory.
    """

    def __init__(
        self,
        kv_shapes: Sequence[KVShape],
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        sources: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.capacity, self.device = capacity, device
        self.bytes = batch * capacity * dtype.itemsize * sum(heads * (k + v) for heads, k, v in kv_shapes)
        _require_memory(self.bytes, batch, capacity, device)
        # One storage for all tensors of a kind, so that `keep` is one gather and one scatter.
        self._storage: dict[tuple[int, int], Tensor] = {}
        kinds = [(heads, dim) for heads, *dims in kv_shapes for dim in dims]
        for heads, dim in dict.fromkeys(kinds):
            count = kinds.count((heads, dim))
            self._storage[heads, dim] = torch.zeros(count, batch, heads, capacity, dim, dtype=dtype, device=device)
        taken = dict.fromkeys(self._storage, 0)
        tensors = []
        for kind in kinds:
            tensors.append(self._storage[kind][taken[kind]])
            taken[kind] += 1
        self._layers = list(zip(tensors[::2], tensors[1::2], strict=True))
        self.lengths: Int[Tensor, " batch"] = torch.zeros(batch, dtype=torch.long, device=device)
        self.prompts: Int[Tensor, " batch"] = torch.zeros_like(self.lengths)  # tokens of each row's prompt
        self.host_lengths = [0] * batch
        self._sources = {i: i for i in range(len(kv_shapes))} if sources is None else sources
        self._kept = frozenset(self._sources.values())
        self._tree: AttentionContext | None = None
        self._slots: Tensor | None = None

    def has_room(self, block: int) -> bool:
        """Whether every row has room for `block` more nodes."""
        return max(self.host_lengths) + block <= self.capacity

    @property
    def empty(self) -> bool:
        """Whether no row has any committed token."""
        return not any(self.host_lengths)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def layer(
        self, index: int
    ) -> tuple[Float[Tensor, "batch kv_heads slots key_dim"], Float[Tensor, "batch kv_heads slots value_dim"]]:
        """Return keys and values of a layer, all slots."""
        return self._layers[index]

    def begin(self, lengths: Sequence[int]) -> None:
        """Record the prompt length of each row that is empty."""
        empty = [length == 0 for length in self.host_lengths]
        if any(empty):
            prompts = on_device(list(lengths), self.device)
            self.prompts.copy_(torch.where(on_device(empty, self.device), prompts, self.prompts))

    @property
    def hands_out(self) -> bool:
        """Whether the model changes keys and values of some layers before it attends to them."""
        return len(self._kept) < len(self._layers)

    def stored(self, attention: int | None) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values that an attention layer attends to, all slots; None if `update` has
        returned them."""
        source = None if attention is None else self._sources.get(attention)
        return None if source is None else self._layers[source]

    def open_block(self, tree: AttentionContext) -> None:
        """Set where the next forward writes: at the last `new` nodes of the block behind the prefix."""
        self._tree = tree
        slots = self.lengths[:, None] + torch.arange(tree.block - tree.new, tree.block, device=self.device)
        self._slots = slots[:, None, :, None]

    def close_block(self) -> None:
        """Forget where the last forward wrote, because that context refers to the cache and would keep it alive."""
        self._tree = self._slots = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; the model calls this in each layer.

        Returns:
            The new keys and values; or all slots in use, if the model changes the layer's cache before it attends to
            it.
        """
        assert self._slots is not None, "open_block() comes before a forward"
        assert self._tree is not None
        stored = self._layers[layer_idx]
        write(*stored, key_states, value_states, self._slots)
        if layer_idx in self._kept:
            return key_states, value_states
        keys, values = (storage[:, :, : self._tree.slots] for storage in stored)
        return keys, values

    def block_of(self, storage: Float[Tensor, "batch kv_heads slots dim"], size: int) -> Tensor:
        """Return the first `size` block entries of every row of a layer's keys or values."""
        slots = (self.lengths[:, None] + torch.arange(size, device=self.device))[:, None, :, None]
        return storage.gather(2, slots.expand(-1, storage.shape[1], -1, storage.shape[3]))

    def keep(self, path: Int[Tensor, "batch kept"], counts: Sequence[int]) -> None:
        """Commit the block nodes on `path` (padded with -1) and forget the rest of the block.

        counts: how many nodes each row keeps; the host knows it without waiting.
        """
        order = torch.arange(path.shape[1], device=self.device)
        # On a CPU the check costs nothing, and an accepted chain needs no moves.
        if not (transfer.on_host(path) and bool(((path == order) | (path < 0)).all())):
            base = self.lengths[:, None]
            source, to = base + path.clamp(min=0), base + order
            for storage in self._storage.values():
                shape = (storage.shape[0], -1, storage.shape[2], -1, storage.shape[4])
                moved = storage.gather(3, source[None, :, None, :, None].expand(shape))
                storage.scatter_(3, to[None, :, None, :, None].expand(shape), moved)
        self.advance(counts)

    def advance(self, counts: Sequence[int]) -> None:
        """Commit the first `counts[b]` block nodes of each row in place."""
        self.host_lengths = [length + n for length, n in zip(self.host_lengths, counts, strict=True)]
        self.lengths += on_device(list(counts), self.device)

    def fits(self, batch: int, capacity: int) -> bool:
        """Whether this storage, emptied with `crop`, serves a batch of this size and capacity."""
        return batch == len(self.host_lengths) and capacity <= self.capacity

    def crop(self, lengths: Sequence[int]) -> None:  # type: ignore[override]
        """Forget everything behind the first `lengths[b]` committed tokens."""
        assert all(new <= old for new, old in zip(lengths, self.host_lengths, strict=True))
        self.host_lengths = list(lengths)
        self.lengths.copy_(on_device(self.host_lengths, self.device))

    def clear(self) -> None:
        """Forget everything, for an unrelated batch. Writes zeros, because a masked product multiplies unseen slots by
        0, and 0 * NaN is NaN."""
        self.crop([0] * len(self.host_lengths))
        for storage in self._storage.values():
            storage.zero_()

    @contextmanager
    def at_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """Run the body as if each row had committed `lengths[b]` tokens. Their slots are not restored."""
        before, self.host_lengths = self.host_lengths, list(lengths)
        self.lengths.copy_(on_device(self.host_lengths, self.device))
        try:
            yield
        finally:
            self.host_lengths = before
            self.lengths.copy_(on_device(before, self.device))

    def adopt(self, row: int, source: TreeCache, source_row: int) -> None:
        """Replace a row by the committed tokens of a row of another cache with the same layers. A freed row thus takes
        up a prompt that was read elsewhere."""
        length = source.host_lengths[source_row]
        for kind, storage in self._storage.items():
            storage[:, row, :, :length] = source._storage[kind][:, source_row, :, :length]
        self.host_lengths[row] = length
        self.lengths[row], self.prompts[row] = length, source.prompts[source_row]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0, for models that call it although positions and mask come with every forward. A length that changes
        from step to step could not be captured in a graph."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return number and offset of slots, for models that build masks."""
        return (query_length if self._tree is None else self._tree.slots), 0

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Return the forward's context, which transformers passes on to the mask function (`tree_mask`)."""
        return self._tree


class LentCaches:
    """Caches that outlive a batch. Their addresses stay, so that graphs captured for one prompt serve the next.

    A cache is lent to a holder (a drafter, a verifier, the baseline), which gets the same one for every batch of that
    size. Once a holder is deleted, another may take over its caches.

    Args:
        new: makes a cache for a batch size and a capacity.
        windows: lengths at which the model's attention changes with the capacity of its cache. A cache serves only
            batches on the same side of each, so that a result does not depend on earlier batches.
    """

    def __init__(self, new: Callable[[int, int], TreeCache], windows: Sequence[int] = ()) -> None:
        self._new, self._windows = new, windows
        self._lent: list[tuple[ref[Any], TreeCache]] = []  # the one used last at the end

    def lend(self, holder: object, batch: int, capacity: int) -> TreeCache:
        """Return an empty cache for `batch` rows of `capacity` slots or more.

        Raises:
            InputError: see `TreeCache`.
        """
        capacity = -(-capacity // ROOM) * ROOM
        free = [entry for entry in self._lent if entry[0]() is holder or entry[0]() is None]
        fitting = next((entry for entry in free if self._serves(entry[1], batch, capacity)), None)
        if fitting is not None:
            gone, cache = [fitting], fitting[1]
            cache.clear()
        else:
            others = [entry for entry in free if entry[0]() is holder and len(entry[1].host_lengths) != batch]
            gone = [entry for entry in free if entry not in others[1 - KEPT :]]
            cache = self._new(batch, capacity)
        self._lent = [entry for entry in self._lent if entry not in gone]
        self._lent.append((ref(holder), cache))
        return cache

    def _serves(self, cache: TreeCache, batch: int, capacity: int) -> bool:
        same_side = all((cache.capacity <= window) == (capacity <= window) for window in self._windows)
        return cache.fits(batch, capacity) and same_side


def _require_memory(needed: int, batch: int, capacity: int, device: torch.device) -> None:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            "KV cache",
            expected=f"at most {free / 2**20:,.0f} MiB (what is free on {device})",
            got=f"{needed / 2**20:,.0f} MiB for batch {batch} x {capacity} tokens",
            fix="lower generation.batch_size or generation.max_new_tokens",
        )


def cache_argument(model: nn.Module) -> str:
    """Return the name of the forward's cache argument: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
