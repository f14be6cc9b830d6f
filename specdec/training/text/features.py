"""Compute features by teacher forcing: one forward of the target over text it has written.

Up to rounding, this gives the features that generation would have stored. It also gives those that it did not store:
other layers, or all features of a folder that was imported as token ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.training.text.shard import Shard, require_disk
from specdec.training.text.store import TextStore
from specdec.training.text.texts import FEATURE_BYTES, HIDDEN, Text

WINDOW = 128  # texts that are batched by length at a time; their features are in memory, an interruption loses them
BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}  # tokens per forward, padding included


def check_names(names: Sequence[str], target: TargetModel) -> None:
    """Refuse features that the target does not have.

    Raises:
        InputError: a name is neither "hidden" nor "layer:k" with 0 <= k < number of layers.
    """
    layers = target.depth
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
    """Return features at every token, by name, from one forward of the stock model.

    Args:
        target: the target.
        tokens: texts, padded on the right; attention is causal, so padding after a text does not affect it.
        names: as in `Recipe.features`.
    """
    with target.stock() as model:
        layers = any(name != HIDDEN for name in names)
        out = model.base_model(input_ids=tokens.to(target.device), use_cache=False, output_hidden_states=layers)
    return {name: out.last_hidden_state if name == HIDDEN else out.hidden_states[int(name[6:])] for name in names}


def complete(
    target: TargetModel,
    shard: Shard,
    names: Sequence[str],
    batch_tokens: int | None = None,
    on_text: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Compute and store the features that a shard's sequences lack. An interrupted run continues where it stopped.

    All missing features of a sequence are computed in one forward.

    Args:
        target: the target.
        shard: the shard.
        names: features to complete, as in `Recipe.features`.
        batch_tokens: largest number of tokens per forward, padding included; None for a default that suits the device.
        on_text: called after each forward with its number of tokens x features.

    Raises:
        InputError: the target does not have a feature, or the disk is too small.
    """
    check_names(names, target)
    needed = missing_tokens(shard, names) * FEATURE_BYTES * shard.origin.dim
    require_disk(shard.folder, needed, f"the features {', '.join(names)}", "choose a folder on a larger disk")
    store, stored = TextStore(shard.folder), {name: shard.cut_feature(name) for name in names}
    batch_tokens = batch_tokens or BATCH_TOKENS.get(target.device.type, BATCH_TOKENS["cpu"])
    begin = min(stored.values(), default=0)
    while begin < len(shard.texts):
        wanted = [name for name in names if stored[name] <= begin]
        # end before the first text that lacks other features than these
        end = min([begin + WINDOW, *(count for count in stored.values() if count > begin)])
        window, values = shard.texts[begin:end], {}
        for batch in batches(window, batch_tokens):
            rows = [torch.from_numpy(store.tokens(window[i])).long() for i in batch]
            made = teacher_forced(target, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), wanted)
            for name, all_rows in made.items():
                for i, row in zip(batch, all_rows.to("cpu"), strict=True):
                    values[i, name] = row[: window[i].tokens].clone()
            on_text(len(wanted) * sum(window[i].tokens for i in batch))
        for name in wanted:
            for i in range(len(window)):
                shard.append_feature(window[i], name, values.pop((i, name)))
        begin = end


def missing_tokens(shard: Shard, names: Sequence[str]) -> int:
    """Return the number of tokens x features that `complete` has to compute."""
    return sum(text.tokens for name in names for text in shard.texts[shard.stored(name) :])


def batches(texts: Sequence[Text], tokens: int) -> Iterator[list[int]]:
    """Yield batches of text indices whose padded size is at most `tokens`; each has at least one text.

    Texts are sorted by length, so that there is little padding.
    """
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: texts[i].tokens):
        if batch and (len(batch) + 1) * texts[i].tokens > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
