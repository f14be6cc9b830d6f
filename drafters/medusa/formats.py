"""Heads on disk: every published layout is read, two are written. Counts come from the keys, never from a config.

layout         keys of head i, block j of L                                              written
official       {i}.{j}.linear.weight|bias, and {i}.{L}.weight if the output layer is own  yes
               (the same behind `medusa_head.` in full models, whose other tensors are left alone)
TGI            the official keys
vLLM           blocks.{i}.layers.{j}.weight|bias, lm_heads.{i}.weight, token_map          yes
TensorRT-LLM   medusa_heads.{i}.medusa_layers.{j}.linear.weight|bias, medusa_heads.{i}.lm_head.weight

A draft vocabulary is vLLM's `token_map`, in official files too (whose loader ignores it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from drafters.medusa.files import Source
from drafters.medusa.heads import MedusaHeads, output_weight
from drafters.medusa.trees import TREE_FILE
from specdec.errors import InputError
from specdec.runlog import write_json
from specdec.target import TargetModel

LAYOUTS = {
    "official": (
        r"(?:medusa_heads?\.)?(?P<head>\d+)\.(?P<layer>\d+)\.linear\.(?P<kind>weight|bias)",
        r"(?:medusa_heads?\.)?(?P<head>\d+)\.(?P<layer>\d+)\.weight",
    ),
    "vLLM": (
        r"(?:medusa_heads\.)?blocks\.(?P<head>\d+)\.layers\.(?P<layer>\d+)\.(?P<kind>weight|bias)",
        r"(?:medusa_heads\.)?lm_heads\.(?P<head>\d+)\.weight",
    ),
    "TensorRT-LLM": (
        r"medusa_heads\.(?P<head>\d+)\.medusa_layers\.(?P<layer>\d+)\.linear\.(?P<kind>weight|bias)",
        r"medusa_heads\.(?P<head>\d+)\.lm_head\.weight",
    ),
}
TOKEN_MAP = "token_map"


@dataclass(frozen=True)
class HeadsFile:
    """Heads read from disk, and what became of everything in the file.

    layout: see `LAYOUTS`; mapped, dropped: (key in the file, what it became, or why it was left out); notes: where a
    config contradicts the weights, which are believed; tree: the tree file beside the heads, if there is one;
    base_model: what the config says they were trained for.
    """

    heads: MedusaHeads
    layout: str
    mapped: list[tuple[str, str]]
    dropped: list[tuple[str, str]]
    notes: list[str]
    tree: Path | None
    base_model: str | None


def read_heads(name: str, what: str = "drafter.heads") -> HeadsFile:
    """From a folder, a file or a hub id.

    Raises:
        InputError: no heads there, a corrupt or truncated file, pickled code, shapes that do not fit each other.
    """
    source = Source(name, what)
    keys = source.keys()
    found = {layout: _places(keys, patterns) for layout, patterns in LAYOUTS.items()}
    layout = max(found, key=lambda name: len(found[name]))
    if not found[layout]:
        raise source.error("keys of Medusa heads (`0.0.linear.weight` or the like)", f"{_some(keys)}")
    places = found[layout]
    tensors = source.tensors([*places, *(key for key in keys if key == TOKEN_MAP)])
    parts = _Parts(source, places, tensors)
    dropped = [(key, "no part of the heads") for key in keys if key not in tensors]
    config = source.config()
    output, vocabulary = _output(parts, tensors.get(TOKEN_MAP), dropped)
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
    return HeadsFile(heads, layout, mapped, dropped, notes, source.file(TREE_FILE), base_model)


def write_official(
    heads: MedusaHeads, folder: Path, base_model: str, dtype: torch.dtype = torch.float16
) -> Sequence[str]:
    """`medusa_lm_head.safetensors` and `config.json`, as version 2 has them (as version 1, where output layers are
    the heads' own). Returns the keys written. Other loaders pass over a draft vocabulary: heads that share the
    target's output layer then know all its tokens."""
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
    """`model.safetensors` and `config.json` as vLLM reads them. Returns the keys written.

    target: needed where heads share its output layer (vLLM wants that in the file) or know only some of its tokens.

    Raises:
        InputError: no target where it is needed, or one the heads do not fit.
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


@dataclass(frozen=True)
class _Place:
    """Where a tensor belongs. layer None: the head's output layer."""

    head: int
    layer: int | None
    kind: str
    number: int | None = None  # an official output layer's, which must be the number of blocks

    @property
    def name(self) -> str:
        part = "output layer" if self.layer is None else f"block {self.layer} {self.kind}"
        return f"head {self.head} {part}"


def _places(keys: Sequence[str], patterns: tuple[str, str]) -> dict[str, _Place]:
    block, output = (re.compile(pattern) for pattern in patterns)
    places = {}
    for key in keys:
        if match := block.fullmatch(key):
            places[key] = _Place(int(match["head"]), int(match["layer"]), match["kind"])
        elif match := output.fullmatch(key):
            number = match.groupdict().get("layer")
            places[key] = _Place(int(match["head"]), None, "weight", None if number is None else int(number))
    return places


class _Parts:
    """The tensors of the heads by place, checked to be whole: the counts are what the keys say."""

    def __init__(self, source: Source, places: Mapping[str, _Place], tensors: Mapping[str, Tensor]) -> None:
        self._source = source
        self._tensors = {(p.head, p.layer, p.kind): tensors[key] for key, p in places.items()}
        self.keys = {(p.head, p.layer, p.kind): key for key, p in places.items()}
        blocks = {p for p in places.values() if p.layer is not None}
        self.heads = 1 + max(p.head for p in places.values())
        self.layers = 1 + max((p.layer for p in blocks if p.layer is not None), default=-1)
        self.has_bias = any(p.kind == "bias" for p in blocks)
        for place in places.values():
            if place.number is not None and place.number != self.layers:
                raise source.error(
                    f"the output layer of head {place.head} after {self.layers} blocks", f"`{place.number}.weight`"
                )
        self.outputs = [head for head in range(self.heads) if (head, None, "weight") in self._tensors]
        whole = [(h, j, k) for h in range(self.heads) for j in range(self.layers) for k in self._kinds]
        missing = [place for place in whole if place not in self._tensors]
        if missing:
            head, layer, kind = missing[0]
            raise source.error(
                f"{self.heads} heads of {self.layers} blocks, as the other keys say",
                f"no {kind} of head {head}, block {layer}",
                "a truncated file? fetch it again",
            )
        first = self._tensors[whole[0]] if whole else self._tensors[self.outputs[0], None, "weight"]
        self.dim, self.dtype = first.shape[-1], first.dtype
        for head, layer, kind in whole:
            self._require_shape(head, layer, kind, (self.dim, self.dim) if kind == "weight" else (self.dim,))

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.has_bias else ("weight",)

    def stacked(self, kind: str) -> Tensor:
        """[layers heads ...]"""
        layers = [[self._tensors[h, j, kind] for h in range(self.heads)] for j in range(self.layers)]
        shape = (0, self.heads, self.dim) + ((self.dim,) if kind == "weight" else ())
        return torch.stack([torch.stack(layer) for layer in layers]) if layers else torch.zeros(shape)

    def output(self, head: int, rows: int | None = None) -> Tensor:
        weight = self._tensors[head, None, "weight"]
        self._require_shape(head, None, "weight", (weight.shape[0] if rows is None else rows, self.dim))
        return weight

    def _require_shape(self, head: int, layer: int | None, kind: str, shape: tuple[int, ...]) -> None:
        got = tuple(self._tensors[head, layer, kind].shape)
        if got != shape:
            raise self._source.error(f"`{self.keys[head, layer, kind]}` of shape {shape}", f"{got}")


def _output(
    parts: _Parts, token_map: Tensor | None, dropped: list[tuple[str, str]]
) -> tuple[Tensor | None, Tensor | None]:
    """Own output layers and the draft vocabulary, ascending; None for what there is not."""
    vocabulary, order = None, None
    if token_map is not None:
        vocabulary, order = token_map.flatten().long().sort()
        if len(vocabulary) == 0 or int(vocabulary[0]) < 0 or len(vocabulary.unique()) != len(vocabulary):
            raise parts._source.error(f"`{TOKEN_MAP}` with different token ids >= 0", "ids that repeat or are negative")
    if len(parts.outputs) not in (0, 1, parts.heads) or (parts.outputs and parts.outputs[0] != 0):
        lacks = min(set(range(parts.heads)) - set(parts.outputs))
        raise parts._source.error("an output layer for every head, or one for all", f"none of head {lacks}")
    if len(parts.outputs) < parts.heads:
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
        raise parts._source.error(f"`{TOKEN_MAP}` with ids below {rows}", int(vocabulary[-1]))
    return layers[:, vocabulary], vocabulary  # whole output layers: vLLM cuts them too


def _contradictions(config: Mapping[str, Any], heads: MedusaHeads, parts: _Parts, layout: str) -> list[str]:
    """What the config says otherwise than the weights."""
    facts = {"medusa_num_heads": heads.heads, "medusa_num_layers": heads.layers, "num_medusa_heads": heads.heads}
    if layout == "vLLM":  # elsewhere these are the base model's
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
    """Weights and config, each whole or not at all."""
    whole = {key: tensor.detach().to("cpu", dtype).contiguous().clone() for key, tensor in tensors.items()}
    if vocabulary is not None:
        whole[TOKEN_MAP] = vocabulary.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{file}.unfinished"
    save_file(whole, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / file)
    write_json(folder / "config.json", config)
    return list(whole)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") if keys else "an empty file"
