"""What stands between the exit layer and the output layer: a few residual blocks, or a transformer layer with its own
keys and values (Kangaroo, arXiv 2404.18911); then a final norm of its own and the target's output layer, or those of
its rows that are a draft vocabulary.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from specdec.errors import InputError
from specdec.layers import DecoderLayers
from specdec.runlog import write_json
from specdec.runtime import linear
from specdec.students import student_of
from specdec.target import TargetModel
from specdec.training.store import fingerprint

WEIGHTS, CONFIG, FORMAT = "adapter.safetensors", "config.json", 1


class ExitAdapter(nn.Module):
    """exit_layer: the layers of the target before it. blocks: how many residual blocks x + SiLU(W x + b), zero when
    fresh; or student: a model of a few layers whose layers and norm become the adapter's.

    norm: begins as the target's. vocabulary [rows] or None: the target's ids of the output rows, ascending.
    """

    vocabulary: Tensor | None  # a buffer: moves with the module, is never trained

    def __init__(
        self,
        exit_layer: int,
        blocks: int,
        student: PreTrainedModel,
        parts: DecoderLayers,
        vocabulary: Int[Tensor, " rows"] | None = None,
    ) -> None:
        super().__init__()
        assert parts.norm is not None
        self.exit_layer, self.parts = exit_layer, parts
        self.norm = student.get_submodule(parts.norm)
        self.layers = None if blocks else parts.of(student)
        dim = student.config.get_text_config().hidden_size
        device = student.device
        self.weight = nn.Parameter(torch.zeros(blocks, dim, dim, device=device))
        self.bias = nn.Parameter(torch.zeros(blocks, dim, device=device))
        self.register_buffer("vocabulary", vocabulary)
        self._student: tuple[PreTrainedModel, ...] = (
            () if blocks else (student,)
        )  # in a tuple: what the target has is no part of the module

    @property
    def blocks(self) -> int:
        return len(self.weight)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def shared(self) -> list[nn.Parameter]:
        """What the layers need of the target."""
        return [
            parameter for student in self._student for parameter in student.parameters() if not parameter.requires_grad
        ]

    def forward(self, stream: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the output layer reads, of texts from their first token on."""
        if self.layers is None:
            for weight, bias in zip(self.weight, self.bias, strict=True):
                stream = stream + F.silu(F.linear(stream, weight, bias))
            out: Tensor = self.norm(stream)
            return out
        ids = torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)
        part = self.parts.upper(self._student[0], 0)
        states: Tensor = part.base_model(input_ids=ids, use_cache=False, entering=stream).last_hidden_state
        return states

    def output_rows(self, target: TargetModel) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, " rows"] | None]:
        """Weight and bias of the target's output layer, which is shared; of the draft vocabulary, if there is one."""
        output = target.model.get_output_embeddings()
        weight, bias = output.weight.detach(), getattr(output, "bias", None)
        bias = None if bias is None else bias.detach()
        if self.vocabulary is None:
            return weight, bias
        return weight[self.vocabulary], None if bias is None else bias[self.vocabulary]

    def as_model(self, target: TargetModel) -> PreTrainedModel:
        """The layers as a model whose output layer gives the adapter's logits, for the decoding path. Tensors are
        shared; the modules are others, since a runtime may exchange them."""
        student = self._student[0]
        shared = {id(tensor): tensor for tensor in (*student.parameters(), *student.buffers())}
        model: PreTrainedModel = copy.deepcopy(student, shared)
        model.set_output_embeddings(linear(*self.output_rows(target), fast=False))
        return model

    def require_trained_for(self, exit_layer: int) -> None:
        """Refuse another exit layer than it was trained for.

        Raises:
            InputError: names both.
        """
        if exit_layer != self.exit_layer:
            raise InputError(
                "drafter.adapter",
                expected=f"an adapter for drafter.exit_layer={exit_layer}",
                got=f"one that was trained for {self.exit_layer}",
                fix=f"use drafter.exit_layer={self.exit_layer}, or train another",
            )


def fresh_adapter(
    target: TargetModel,
    exit_layer: int,
    blocks: int = 0,
    layers: Sequence[int] = (-1,),
    vocabulary: Int[Tensor, " rows"] | None = None,
) -> ExitAdapter:
    """An untrained adapter in fp32: residual blocks, or copies of the target's layers of these numbers (-1: its last).

    Raises:
        InputError: an exit layer out of range, or layers the target does not have.
    """
    target.require_layer(exit_layer, "recipe.exit_layer")
    count = len(target.layers)
    student = student_of(target, [layer % count if -count <= layer < 0 else layer for layer in layers])
    parts = DecoderLayers(student, len(layers), target.parts.path)
    return ExitAdapter(exit_layer, blocks, student, parts, vocabulary)


def save_adapter(adapter: ExitAdapter, target: TargetModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """What was trained, without what the target has: `adapter.safetensors` and `config.json`."""
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in adapter.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "target": target.name,
        "target_weights": fingerprint(target),
        "exit_layer": adapter.exit_layer,
        "blocks": adapter.blocks,
        "layers": 0 if adapter.layers is None else len(adapter.layers),
        "vocabulary": None if adapter.vocabulary is None else len(adapter.vocabulary),
    }
    write_json(folder / CONFIG, config)


def load_adapter(folder: Path, target: TargetModel, what: str = "drafter.adapter") -> ExitAdapter:
    """An adapter from its folder, on the target's device and in its precision. Weights of another fingerprint than
    those it was trained on are warned of: the text stays the target's, only acceptance may suffer.

    Raises:
        InputError: no adapter there, a corrupt one, or one for a target of another shape.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        state = load_file(folder / WEIGHTS)
        layers, blocks, exit_layer = (int(config[name]) for name in ("layers", "blocks", "exit_layer"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        got = f"{str(folder)!r} ({type(error).__name__}: {str(error).splitlines()[0]})"
        fix = "check the path, or train one with `python -m experiments.train drafter=early_exit`"
        expected = f"a folder with {CONFIG} and {WEIGHTS} of an exit adapter"
        raise InputError(what, expected=expected, got=got, fix=fix) from error
    adapter = fresh_adapter(target, exit_layer, blocks, [-1] * max(layers, 1), state.get("vocabulary"))
    wrong = {
        name for name, tensor in adapter.state_dict().items() if name not in state or state[name].shape != tensor.shape
    } | (state.keys() - adapter.state_dict().keys())
    if wrong or (adapter.vocabulary is not None and int(adapter.vocabulary.max()) >= target.vocab_size):
        raise InputError(
            what,
            expected=f"an adapter for a target built like {target.name}",
            got=f"one trained for {config.get('target')!r} (other shapes: {', '.join(sorted(wrong)) or 'vocabulary'})",
            fix="choose the target it was trained for",
        )
    if config.get("target_weights") != fingerprint(target):
        trained = config.get("target")
        warnings.warn(f"{what}: trained on other weights ({trained!r}) than those of {target.name}", stacklevel=2)
    adapter.load_state_dict(state)
    return adapter.to(target.device, target.dtype).eval()
