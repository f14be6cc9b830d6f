"""Features by teacher forcing: one forward of the target over text it has written.

Gives what generation would have stored (up to rounding), and what it did not: other layers, or the features of a folder
that came as token ids only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.target import TargetModel
from specdec.training.store import FEATURE_BYTES, HIDDEN, Shard, Text, TextStore, require_disk


def check_names(names: Sequence[str], target: TargetModel) -> None:
    """Refuse features the target does not have.

    Raises:
        InputError: neither "hidden" nor "layer:k" with 0 <= k < the number of layers.
    """
    layers = len(target.layers)
    for name in names:
        match = re.fullmatch(r"layer:(\d+)", name)
        if name != HIDDEN and not (match and int(match[1]) < layers):
            raise InputError(
                "features", expected=f"'hidden', or 'layer:k' with k from 0 to {layers - 1}", got=repr(name),
                fix="'hidden' is what the last layer gives, after the final norm",
            )  # fmt: skip


@torch.inference_mode()
def teacher_forced(
    target: TargetModel, tokens: Int[Tensor, "batch seq"], names: Sequence[str]
) -> dict[str, Float[Tensor, "batch seq dim"]]:
    """Features at every token of texts padded on the right, from one forward of the stock model.

    Texts are causal, so padding behind them changes nothing in them. Names as in `Recipe.features`.
    """
    with target.stock() as model:
        layers = any(name != HIDDEN for name in names)
        out = model.base_model(input_ids=tokens.to(target.device), use_cache=False, output_hidden_states=layers)
    return {name: out.last_hidden_state if name == HIDDEN else out.hidden_states[int(name[6:])] for name in names}


def complete(
    target: TargetModel,
    shard: Shard,
    names: Sequence[str],
    batch_tokens: int = 4096,
    on_text: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Compute and store what features a shard's sequences lack; an interrupted run goes on where it stopped.

    batch_tokens: of a forward, padding included. on_text: called with each sequence's number of tokens.

    Raises:
        InputError: a feature the target does not have, or a disk too small for it.
    """
    check_names(names, target)
    needed = missing_tokens(shard, names) * FEATURE_BYTES * shard.origin.dim
    require_disk(shard.folder, needed, f"the features {', '.join(names)}", "choose a folder on a larger disk")
    store = TextStore(shard.folder)
    for name in names:
        for batch in batches(shard.texts[shard.cut_feature(name) :], batch_tokens):
            rows = [torch.from_numpy(store.tokens(text)).long() for text in batch]
            values = teacher_forced(target, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [name])[name]
            for text, row in zip(batch, values, strict=True):
                shard.append_feature(name, row[: text.tokens])
                on_text(text.tokens)


def missing_tokens(shard: Shard, names: Sequence[str]) -> int:
    """Tokens times features that `complete` has to make."""
    return sum(text.tokens for name in names for text in shard.texts[shard.stored(name) :])


def batches(texts: Sequence[Text], tokens: int) -> Iterator[list[Text]]:
    """Neighbours that make at most so many tokens together, padded to the longest of them; at least one each."""
    batch: list[Text] = []
    for text in texts:
        if batch and (len(batch) + 1) * max(text.tokens, *(t.tokens for t in batch)) > tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
