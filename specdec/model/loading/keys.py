"""Weights that a checkpoint lacks, and descriptions of stored weights that its model does not use."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from specdec.errors import InputError

LISTED = 3  # keys or patterns named in a message

SCALES = re.compile(r"(weight_scale(_inv|_2)?|input_scale|weight_packed|qweight|qzeros|g_idx|absmax|quant_state\S*)$")
MTP_LAYER = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|mtp)\b")

MTP = "modules that predict several tokens (MTP)"

# Descriptions of keys that the model does not use; the first pattern found in a key counts.
KINDS: Mapping[str, str] = {
    r"^medusa_heads?\.": "Medusa heads, which drafter=medusa drafter.heads={name} reads",
    r"(^|[._])(mtp|nextn)": MTP,
    r"rotary_emb\.inv_freq$": "rotary tables, which are computed from the config",
    r"\.(attn|attention|self_attn)\.(bias|masked_bias)$": "causal masks, which are computed",
    r"position_ids$": "position numbers, which are computed",
    r"lora_(A|B|embedding)|\.base_layer\.": "weights of an adapter that was not merged",
    r"(vision|visual|image|audio|mm_|multi_modal|projector|perceiver|resampler)": "parts for images or sound",
    r"\.(k_scale|v_scale|kv_scale)$": "scales of a quantised KV cache",
    r"^(score|classifier|v_head|value_head|reward_head|qa_outputs)\b": "a head for another task",
}


def require_every_weight(model: PreTrainedModel, info: Mapping[str, Any], name: str, option: str) -> None:
    """Refuse a checkpoint if `transformers` filled some of its weights with random numbers. Tied weights are not
    missing.

    Args:
        model: the loaded model.
        info: `output_loading_info` of `from_pretrained`.
        name: hub id or folder of the checkpoint.
        option: name used in error messages.

    Raises:
        InputError: names the weights that are missing or of another shape.
    """
    kind, unused = type(model).__name__, sorted(info["unexpected_keys"])
    if mismatched := sorted(info["mismatched_keys"]):
        key, stored, wanted = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise InputError(
            option, expected=f"weights of the shapes that its config.json gives {kind}",
            got=f"{name!r}, whose {key}{more} has the shape {[*stored]} where the config gives {[*wanted]}",
            fix="mend the sizes in config.json (vocab_size and the like), or download it again",
        )  # fmt: skip
    scales = [key for key in unused if SCALES.search(key)]
    if missing := sorted(info["missing_keys"]):
        instead = f" (the file has instead {listed(unused)})" if unused else ""
        raise InputError(
            option, expected=f"a checkpoint with every weight of {kind}",
            got=f"{name!r}, which lacks {listed(missing)}{instead}", fix=_advice(model, missing, bool(scales)),
        )  # fmt: skip
    if scales:
        raise InputError(
            option, expected="weights that are not quantised, or a config.json with their quantization_config",
            got=f"{name!r} with {listed(scales)} and no such entry", fix="download config.json again",
        )  # fmt: skip


def say_unused(model: PreTrainedModel, info: Mapping[str, Any], name: str, stored: Iterable[str] = ()) -> None:
    """Warn of unused weights, with descriptions, and of embeddings that the config ties although the file holds two.

    Args:
        model: the loaded model.
        info: `output_loading_info` of `from_pretrained`.
        name: hub id or folder of the checkpoint.
        stored: all keys of the checkpoint, so that keys that the model's class ignores are named too.
    """
    passed_over = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    ignored = {key for key in stored if any(pattern.search(key) for pattern in passed_over)}
    if keys := sorted({*info["unexpected_keys"], *ignored}):
        warnings.warn(f"{name}: not used: {described(keys, model, name)}", stacklevel=4)
    entry: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and output is not None and output.weight.data_ptr() != entry.weight.data_ptr():
        warnings.warn(
            f"{name}: config.json ties input and output embeddings, but two are stored: both are used", stacklevel=4
        )


def described(keys: Sequence[str], model: PreTrainedModel, name: str) -> str:
    """Describe the kinds of unused keys, with the number of each."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    predicting = {layer_of(key) for key in keys if MTP_LAYER.search(key)}

    def kind(key: str) -> str:
        layer = layer_of(key)
        if layers is not None and layer is not None and layer >= layers:
            return MTP if layer in predicting else f"layers past num_hidden_layers={layers}"
        return next((kind for pattern, kind in KINDS.items() if re.search(pattern, key)), "")

    counts = Counter(map(kind, keys))
    parts = [f"{what.format(name=name)} ({count:,} tensors)" for what, count in counts.items() if what]
    unknown = [key for key in keys if not kind(key)]
    return "; ".join([*parts, f"unknown tensors: {listed(unknown)}"] if unknown else parts)


def layer_of(key: str) -> int | None:
    """Return the number of the decoder layer that a key belongs to, or None."""
    match = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", key)
    return int(match[1]) if match else None


def listed(keys: Iterable[str]) -> str:
    """Join keys to one line. If there are many, layer numbers become `*`, and each pattern has its number of keys."""
    keys = list(keys)
    if len(keys) <= LISTED:
        return ", ".join(keys)
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", key) for key in keys)
    named = [f"{key} ({count})" if count > 1 else key for key, count in list(counts.items())[:LISTED]]
    rest = len(keys) - sum(list(counts.values())[:LISTED])
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _advice(model: PreTrainedModel, missing: list[str], quantised: bool) -> str:
    if quantised:
        return "the file is quantised and config.json does not say how: download config.json again"
    if all("lm_head" in key or "embed_out" in key for key in missing):
        return (
            "set tie_word_embeddings to true in config.json if input and output embeddings are one, or download again"
        )
    return "mend config.json if it names the wrong architecture or num_hidden_layers, or download the weights again"
