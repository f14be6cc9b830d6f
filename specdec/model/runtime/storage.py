"""The storage format of a model's weights on a CPU (`target.storage`).

    exact             the smallest format that holds every value: GGUF blocks as they were loaded, bf16, fp16, else fp32
    stored            fp32, as the model was loaded
    bf16, int8, int4  rounded: the rounded model is then the target, and lossless refers to it

Weights are kept once: the fp32 originals are freed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from specdec.errors import InputError
from specdec.model.runtime import library as lib
from specdec.model.runtime.blocks import pack_blocks
from specdec.model.runtime.build import BuildError
from specdec.model.runtime.experts import Experts, as_linear
from specdec.model.runtime.packed import Packed, PackedEmbedding, PackedLinear, packed_modules

EXACT, STORED = "exact", "stored"
STORAGE = (EXACT, STORED, "bf16", "int8", "int4")
GROUP = 32  # int4 weights that share a scale, as in kernels/formats.hpp
SAMPLED = 4096  # values that are looked at first, to tell most misfits

Blocks = Mapping[str, tuple[str, Tensor]]  # by parameter: block format, and the bytes of its rows [outputs, bytes]


def rounded(w: Tensor, storage: str) -> Packed:
    """Round a matrix [outputs, inputs] to bf16, int8 or int4.

    int8 has one scale per output, int4 one scale per 32 inputs and two weights per byte. Both round to the nearest
    value of a symmetric grid.
    """
    w = w.detach().float()
    inputs = w.shape[1]
    if storage == "bf16":
        return Packed(storage, w.bfloat16().contiguous(), None, inputs)
    if storage == "int8":
        w = w.contiguous()
        scale = _scale(w, 127)
        return Packed(storage, (w / scale).round().to(torch.int8), scale.squeeze(-1).contiguous(), inputs)
    grouped = F.pad(w, (0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
    scale = _scale(grouped, 7)
    low, high = ((grouped / scale).round() + 8).to(torch.uint8).chunk(2, -1)
    return Packed(storage, (low | high << 4).contiguous(), scale.squeeze(-1).contiguous(), inputs)


def exactly(w: Tensor, blocks: tuple[str, Tensor] | None = None) -> Packed | None:
    """Return a matrix [outputs, inputs] in the smallest format that holds every value bit for bit; None for fp32.

    blocks: block format and bytes of the file that it was read from. They are used only if they give the same numbers.
    """
    w = w.detach()
    if blocks is not None and blocks[1].shape[0] == w.shape[0]:
        packed = pack_blocks(blocks[1], blocks[0])
        if packed.shape == w.shape and _same(packed.widened(), w):
            return packed
    for form, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        some = w[: max(1, SAMPLED // w.shape[1])] if w.numel() else w
        if _same(some.to(dtype).float(), some) and _same((codes := w.to(dtype)).float(), w):
            return Packed(form, codes.contiguous(), None, w.shape[1])
    return None


def pack(model: PreTrainedModel, storage: str, *, fast: bool = True, blocks: Blocks | None = None) -> str | None:
    """Exchange the modules of `model` for ones with packed weights, and free the originals.

    Args:
        model: the model.
        storage: see above.
        fast: whether the kernels may be used. `exact` leaves the model as it is if they may not or cannot, or if it is
            not in fp32 on a CPU: it changes no number.
        blocks: for `exact`, the blocks that the weights were read from.

    Returns:
        A line that says what is kept how, or None if nothing was done.

    Raises:
        InputError: an unknown name; or for a rounded format, a model that is not in fp32 on a CPU, or no compiler.
    """
    require_storage(storage, "target.storage")
    plain = model.device.type == "cpu" and model.dtype is torch.float32
    if storage == STORED or (storage == EXACT and not (fast and plain)):
        return None
    if not plain:
        raise InputError(
            "target.storage",
            expected=f"a model in float32 on a CPU for storage={storage}",
            got=f"{model.dtype} on {model.device}",
            fix="use device=cpu dtype=float32, or a checkpoint that is quantised for your device",
        )
    try:
        lib.kernels()
    except BuildError as error:
        if storage == EXACT:
            return None
        expected, fix = f"a compiler for storage={storage}", "use storage=stored"
        raise InputError("target.storage", expected=expected, got=str(error), fix=fix) from error
    if storage == EXACT:
        return _pack_exactly(model, blocks or {})
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (made := in_lower_precision(child, storage)) is not None:
                setattr(parent, name, made)
    return _what_is_kept(model, storage)


def in_lower_precision(module: nn.Module, storage: str) -> nn.Module | None:
    """Return the same products with rounded weights; None for a module that is not exchanged.

    Products are `nn.Linear`, GPT-2's `Conv1D`, and experts that transformers keeps in one tensor. Embeddings stay; an
    output layer that shared their weights has its own from then on.
    """

    def packed(linear: nn.Linear) -> nn.Module:
        return PackedLinear(rounded(linear.weight, storage), linear.bias)

    if type(module) is nn.Linear:
        return packed(module)
    if type(module) is Conv1D:
        return packed(as_linear(module.weight.T, module.bias))
    experts = Experts.of(module)
    return None if experts is None else experts.exchange(packed)


def _pack_exactly(model: PreTrainedModel, blocks: Blocks) -> str | None:
    """Pack every matrix that fits a smaller format. Modules that share a parameter share the packed bytes."""
    owners: Counter[int] = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    places: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if _can_be_packed(child):
                where = f"{path}.{name}.weight".lstrip(".")
                places.setdefault(id(child.weight), []).append((parent, name, where))
            elif (experts := Experts.of(child)) is not None:
                setattr(parent, name, _experts_exactly(experts) or child)
    differ = []
    for key, modules in places.items():
        one: Any = getattr(*modules[0][:2])
        weight = one.weight.T.contiguous() if type(one) is Conv1D else one.weight
        source = next((blocks[where] for *_, where in modules if where in blocks), None)
        packed = exactly(weight, source) if owners[key] == len(modules) else None
        if source is not None and (packed is None or packed.form != source[0]):
            differ.append(modules[0][2])
        if packed is None:
            continue
        for parent, name, _ in modules:
            old: Any = getattr(parent, name)
            if isinstance(old, nn.Embedding):
                made: nn.Module = PackedEmbedding(packed, old.padding_idx)
            else:
                made = PackedLinear(packed, old.bias, transposed=type(old) is Conv1D)
            setattr(parent, name, made)
    return _what_is_kept(model, EXACT, differ) if packed_modules(model) else None


def _can_be_packed(module: Any) -> bool:
    """Whether the packed modules compute what this one does."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and lib.plain(module.weight) and module.weight.numel() > 0
    return type(module) in (nn.Linear, Conv1D) and lib.plain(module.weight) and module.weight.numel() > 0


def _experts_exactly(experts: Experts) -> Experts | None:
    """Return experts whose weights are all packed; None if one of them needs fp32."""
    layers: list[Any] = [*experts.gate_up, *experts.down]
    packed = {id(layer): exactly(layer.weight) for layer in layers}
    if any(form is None for form in packed.values()):
        return None
    return experts.exchange(lambda linear: PackedLinear(packed[id(linear)], linear.bias))  # type: ignore[arg-type]


def _what_is_kept(model: PreTrainedModel, storage: str, differ: list[str] | None = None) -> str:
    """Return one line: how many weights are kept in which format, and how many stay in fp32 in which modules.

    differ: parameters whose blocks do not give the numbers that the model holds.
    """
    forms: Counter[str] = Counter()
    seen: dict[int, Packed] = {module.codes.data_ptr(): module.packed for module in packed_modules(model)}
    for packed in seen.values():
        forms[packed.form] += packed.shape[0] * packed.shape[1]
    stay: Counter[str] = Counter()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            stay[type(module).__name__] += parameter.numel()
    small, megabytes = _counted(forms), sum(packed.nbytes for packed in seen.values()) / 1e6
    line = f"storage={storage}: {small} weights in {megabytes:,.1f} MB; in fp32 stay {_counted(stay)}"
    return line + (f"; not as in the file: {', '.join(differ[:3])}{' ...' * (len(differ) > 3)}" if differ else "")


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count / 1e6:,.2f}M" for name, count in counts.most_common() if count) or "none"


def require_storage(storage: str, what: str) -> None:
    """Refuse an unknown storage format.

    `what`: name used in error messages.

    Raises:
        InputError: names the known ones.
    """
    if storage not in STORAGE:
        expected, fix = f"one of {', '.join(STORAGE)}", "use storage=exact"
        raise InputError(what, expected=expected, got=repr(storage), fix=fix)


def _scale(w: Tensor, largest: int) -> Tensor:
    """Return the step of a grid that reaches the largest absolute value of each last dimension."""
    return (w.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two fp32 tensors are equal bit for bit, the sign of zeros included."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
