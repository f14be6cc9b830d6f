"""Read and write heads on disk.

- Every published layout is read (`layouts.py` lists them).
- Two layouts are written: vLLM's, and the official one, which TGI reads too. The official layout is version 2, or
  version 1 if the heads have their own output layers.
- A draft vocabulary is stored as vLLM's `token_map`. Official files contain it too; the official loader ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from drafters.medusa.files import Source
from drafters.medusa.heads import MedusaHeads, output_weight
from drafters.medusa.layouts import LAYOUTS, TOKEN_MAP, Parts, places_of
from specdec.errors import InputError
from specdec.files.durable import replacing, write_json
from specdec.model.target import TargetModel
from specdec.training.saving import TRAINING, training_tokens
from specdec.trees.files import TREE_FILE


@dataclass(frozen=True)
class HeadsFile:
    """Heads read from disk, with a record of how each tensor of the file was used.

    Args:
        heads: the heads, on the CPU.
        layout: a key of `LAYOUTS`.
        mapped: pairs (key in the file, part of the heads).
        dropped: pairs (key in the file, reason for leaving it out).
        notes: contradictions between config and weights; the weights are used.
        tree: the tree file beside the heads, None if there is none.
        base_model: the model that the heads were trained for, according to the config.
        training_tokens: as in `Size`.
    """

    heads: MedusaHeads
    layout: str
    mapped: list[tuple[str, str]]
    dropped: list[tuple[str, str]]
    notes: list[str]
    tree: Path | None
    base_model: str | None
    training_tokens: int | None


def read_heads(name: str, what: str = "drafter.heads") -> HeadsFile:
    """Read heads from a folder, a file or a hub id.

    Args:
        name: the folder, file or hub id.
        what: name used in error messages.

    Raises:
        InputError: no heads there, a corrupt or truncated file, pickled code, or shapes that do not fit each other.
    """
    source = Source(name, what)
    keys = source.keys()
    found = {layout: places_of(keys, patterns) for layout, patterns in LAYOUTS.items()}
    layout = max(found, key=lambda name: len(found[name]))
    if not found[layout]:
        raise source.error("keys of Medusa heads (`0.0.linear.weight` or the like)", f"{_some(keys)}")
    places = found[layout]
    tensors = source.tensors([*places, *(key for key in keys if key == TOKEN_MAP)])
    parts = Parts(source, places, tensors)
    dropped = [(key, "no part of the heads") for key in keys if key not in tensors]
    config = source.config()
    shared = bool(config.get("original_lm_head")) and parts.heads == 1  # the only case that the keys do not settle
    output, vocabulary = _output(parts, tensors.get(TOKEN_MAP), shared, dropped)
    heads = MedusaHeads(parts.heads, parts.layers, parts.dim, output, vocabulary).to(parts.dtype)
    with torch.no_grad():
        heads.weight.copy_(parts.stacked("weight"))
        if parts.has_bias:
            heads.bias.copy_(parts.stacked("bias"))
    if not all(torch.isfinite(p).all() for p in heads.parameters()):
        raise source.error("finite weights", "NaN or infinity")
    left_out = {key for key, _ in dropped}
    mapped = [(key, places[key].name) for key in places if key not in left_out]
    mapped += [(TOKEN_MAP, "draft vocabulary")] if vocabulary is not None else []
    notes = [f"{name}: {note}" for note in _contradictions(config, heads, parts, layout)]
    base_model = config.get("base_model_name_or_path")
    record = source.file(TRAINING)
    tokens = None if record is None else training_tokens(record.parent)
    return HeadsFile(heads, layout, mapped, dropped, notes, source.file(TREE_FILE), base_model, tokens)


def write_official(
    heads: MedusaHeads, folder: Path, base_model: str, dtype: torch.dtype = torch.float16
) -> Sequence[str]:
    """Write `medusa_lm_head.safetensors` and `config.json` in the official layout. Returns the keys written.

    The version is 2, or 1 if the heads have their own output layers. Other loaders ignore a draft vocabulary: with
    them, heads that share the target's output layer guess among all its tokens.

    Args:
        heads: the heads to write.
        folder: created if it does not exist.
        base_model: name of the target.
        dtype: precision of the file.

    Raises:
        InputError: weights that `dtype` cannot hold.
    """
    tensors = _blocks(heads, "{head}.{layer}.linear.{kind}")
    if heads.output is not None:
        tensors |= {f"{head}.{heads.layers}.weight": w for head, w in enumerate(heads.output)}
    config = {
        "medusa_num_heads": heads.heads,
        "medusa_num_layers": heads.layers,
        "base_model_name_or_path": base_model,
        "version": "2" if heads.output is None else "1",
    }
    return _write(folder, "medusa_lm_head.safetensors", tensors, heads.vocabulary, dtype, config)


def write_vllm(
    heads: MedusaHeads, folder: Path, target: TargetModel | None, dtype: torch.dtype = torch.float16
) -> Sequence[str]:
    """Write `model.safetensors` and `config.json` as vLLM reads them. Returns the keys written.

    Args:
        heads: the heads to write.
        folder: created if it does not exist.
        target: required if the heads share its output layer (vLLM expects it in the file) or know only some of its
            tokens.
        dtype: precision of the file.

    Raises:
        InputError: a target is required but missing, or does not fit the heads; or weights that `dtype` cannot hold.
    """
    if target is not None:
        heads.require_fits(target, "heads")
    elif heads.output is None or heads.vocabulary is not None:
        shared = "these share the target's" if heads.output is None else "these know only some of the target's tokens"
        raise InputError(
            "target", expected="heads with whole output layers of their own", got=shared, fix="pass target=..."
        )
    tensors = _blocks(heads, "blocks.{head}.layers.{layer}.{kind}")
    outputs = heads.output if heads.output is not None or target is None else heads.output_rows(target)[:1]
    assert outputs is not None
    tensors |= {f"lm_heads.{head}.weight": w for head, w in enumerate(outputs)}
    rows = len(outputs[0])
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": heads.dim,
        "vocab_size": rows if target is None else len(output_weight(target)),
        "truncated_vocab_size": rows,
        "num_heads": heads.heads,
        "num_hidden_layers": heads.layers,
        "max_paths": 64,
        "topk": 10,
        "medusa_fc_bias": True,
        "original_lm_head": heads.output is None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return _write(folder, "model.safetensors", tensors, heads.vocabulary, dtype, config)


def _output(
    parts: Parts, token_map: Tensor | None, shared: bool, dropped: list[tuple[str, str]]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the heads' own output layers and the ascending draft vocabulary; None for each that does not exist.

    Args:
        parts: the tensors of the heads.
        token_map: vLLM's `token_map`, if the file has one.
        shared: whether the output layer of a single head is the target's.
        dropped: extended by the output layers that are not used.
    """
    vocabulary, order = None, None
    if token_map is not None:
        if token_map.is_floating_point() or token_map.is_complex():
            raise parts.source.error(f"`{TOKEN_MAP}` with token ids", str(token_map.dtype))
        vocabulary, order = token_map.flatten().long().sort()
        if len(vocabulary) == 0 or int(vocabulary[0]) < 0 or len(vocabulary.unique()) != len(vocabulary):
            raise parts.source.error(f"`{TOKEN_MAP}` with different token ids >= 0", "ids that repeat or are negative")
    if len(parts.outputs) not in (0, 1, parts.heads) or (parts.outputs and parts.outputs[0] != 0):
        lacks = next(head for head in count() if head not in parts.outputs)
        raise parts.source.error("an output layer for every head, or one for all", f"none of head {lacks}")
    if len(parts.outputs) < parts.heads or shared:
        why = "one output layer for all heads: the target's own is used"
        dropped += [(parts.keys[head, None, "weight"], why) for head in parts.outputs]
        return None, vocabulary
    rows = len(parts.output(0))
    layers = torch.stack([parts.output(head, rows) for head in range(parts.heads)])
    if vocabulary is None or order is None:
        return layers, None
    if rows == len(vocabulary):
        return layers[:, order], vocabulary
    if int(vocabulary[-1]) >= rows:
        raise parts.source.error(f"`{TOKEN_MAP}` with ids below {rows}", int(vocabulary[-1]))
    return layers[:, vocabulary], vocabulary  # output layers over all tokens are cut, as vLLM does


def _contradictions(config: Mapping[str, Any], heads: MedusaHeads, parts: Parts, layout: str) -> list[str]:
    """Return one note for each entry of the config that contradicts the weights.

    Args:
        config: `config.json` beside the heads.
        heads: the heads that were read.
        parts: their tensors.
        layout: a key of `LAYOUTS`.
    """
    facts = {"medusa_num_heads": heads.heads, "medusa_num_layers": heads.layers, "num_medusa_heads": heads.heads}
    if layout == "vLLM":  # in other layouts these entries describe the base model
        facts |= {"num_heads": heads.heads, "num_hidden_layers": heads.layers, "hidden_size": heads.dim}
        facts |= {"medusa_fc_bias": parts.has_bias}
        facts |= {"original_lm_head": heads.output is None}
        if heads.vocabulary is not None:
            facts["truncated_vocab_size"] = len(heads.vocabulary)
    notes = [
        f"config.json says {name} = {config[name]}, the weights say {fact}: the weights are believed"
        for name, fact in facts.items()
        if name in config and config[name] != fact
    ]
    if layout == "vLLM" and config.get("logit_scale", 1.0) != 1.0:
        notes.append(f"logit_scale = {config['logit_scale']} in config.json is left out: it changes no rank")
    return notes


def _blocks(heads: MedusaHeads, key: str) -> dict[str, Tensor]:
    return {
        key.format(head=head, layer=layer, kind=kind): tensor[layer, head]
        for head in range(heads.heads)
        for layer in range(heads.layers)
        for kind, tensor in (("weight", heads.weight), ("bias", heads.bias))
    }


def _write(
    folder: Path,
    file: str,
    tensors: Mapping[str, Tensor],
    vocabulary: Tensor | None,
    dtype: torch.dtype,
    config: Mapping[str, Any],
) -> Sequence[str]:
    """Write weights and config, each atomically. Returns the keys written.

    Args:
        folder: created if it does not exist.
        file: name of the file of weights.
        tensors: the tensors by key.
        vocabulary: the draft vocabulary, None if there is none.
        dtype: precision of the file.
        config: content of `config.json`.

    Raises:
        InputError: weights that `dtype` cannot hold.
    """
    whole = {key: tensor.detach().to("cpu", dtype).contiguous().clone() for key, tensor in tensors.items()}
    if vocabulary is not None:
        whole[TOKEN_MAP] = vocabulary.cpu()
    if not all(bool(tensor.isfinite().all()) for tensor in whole.values()):
        expected, fix = f"weights that {dtype} can hold", "use dtype=bfloat16 or dtype=float32"
        raise InputError("dtype", expected=expected, got="NaN or infinity", fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / file) as unfinished:
        save_file(whole, unfinished, metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    return list(whole)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") if keys else "an empty file"
