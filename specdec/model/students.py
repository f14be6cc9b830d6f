"""Smaller models made of a target's own layers, to be trained to predict its text.

A student is an ordinary model of the same class, so everything that runs the target can run it. Its layers and its
final norm are copies; embeddings and output layer are the target's own tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.errors import InputError
from specdec.model.layers import DecoderLayers
from specdec.model.runtime import linear
from specdec.model.runtime.packed import PackedEmbedding, PackedLinear
from specdec.model.runtime.storage import STORED, pack, require_storage
from specdec.model.target import TargetModel


def student_of(target: TargetModel, layers: Sequence[int], what: str = "recipe.layers") -> PreTrainedModel:
    """Return a model with copies (fp32) of the given layers of the target, counted from 0, in that order.

    The layers and the final norm can be trained; everything else is frozen and shared with the target. Packed layers
    are widened; packed embeddings and output layers are shared as they are.

    `what`: name used in error messages.

    Raises:
        InputError: no layers, or one the target does not have.
    """
    count, parts = target.depth, target.parts
    if not layers or not all(0 <= layer < count for layer in layers):
        expected = f"layers of the target {target.name}, counted from 0 to {count - 1}"
        raise InputError(what, expected=expected, got=list(layers), fix="name at least one that it has")

    def source(name: str) -> str:
        """Return the target's name of the tensor that the student calls `name`."""
        place = name.removeprefix(f"{parts.path}.")
        number, _, rest = place.partition(".")
        return name if place == name else f"{parts.path}.{layers[int(number)]}.{rest}"

    frozen: dict[int, nn.Parameter] = {}  # tied tensors stay one
    with target.stock() as model:
        with torch.device("meta"):
            student: PreTrainedModel = type(model)(_config(model, layers, count))
        tensors = dict(model.named_parameters(remove_duplicate=False))
        for name, _ in list(student.named_parameters(remove_duplicate=False)):
            if source(name) not in tensors:
                expected = "layers of the kind that the target's config gives to their new places"
                raise InputError(what, expected=expected, got=list(layers), fix="name layers of one kind, in order")
            tensor = tensors[source(name)].detach()
            if name.startswith((f"{parts.path}.", f"{parts.norm}.")):
                _put(
                    student, name, nn.Parameter(tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True))
                )
            else:
                _put(student, name, frozen.setdefault(tensor.data_ptr(), nn.Parameter(tensor, requires_grad=False)))
        buffers = dict(model.named_buffers())
        for name, _ in list(student.named_buffers()):
            _put(student, name, buffers[source(name)].clone())
    for name, module in target.model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding) and not name.startswith(f"{parts.path}."):
            student.set_submodule(name, copy.deepcopy(module, {id(part): part for part in module.buffers()}))
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


class Student(nn.Module):
    """The trainable part of a student: decoder layers and final norm.

    Args:
        model: the student's whole model.
        parts: where its layers and its norm are.
        vocabulary: the target's ids of the tokens that it may draft, ascending; None for all.
    """

    vocabulary: Tensor | None  # a buffer: it moves with the module and is not trained

    def __init__(
        self, model: PreTrainedModel, parts: DecoderLayers, vocabulary: Int[Tensor, " rows"] | None = None
    ) -> None:
        super().__init__()
        assert parts.norm is not None
        self.layers, self.norm = parts.of(model), model.get_submodule(parts.norm)
        self.register_buffer("vocabulary", vocabulary)
        self._model, self._parts = (model,), parts  # in a tuple, so that shared tensors are not part of the module

    @property
    def model(self) -> PreTrainedModel:
        """The whole model, with the tensors it shares with the target."""
        return self._model[0]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.norm.parameters()).dtype

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        entering: Float[Tensor, "batch seq dim"] | None = None,
        use_cache: bool = False,
        **options: Any,
    ) -> Float[Tensor, "batch seq dim"]:
        """Compute the input of the output layer for texts from their first token on.

        Args:
            tokens: token ids.
            entering: used in place of the tokens' embeddings, if given.
            use_cache: as in the model's own forward.
            options: further options of the model's forward.
        """
        if entering is None:
            states: Tensor = self.model.base_model(input_ids=tokens, use_cache=use_cache, **options).last_hidden_state
            return states
        part: Any = self._parts.upper(self.model, 0).base_model
        states = part(input_ids=tokens, use_cache=use_cache, entering=entering, **options).last_hidden_state
        return states

    def as_model(self, target: TargetModel, storage: str = STORED) -> PreTrainedModel:
        """Return a model for decoding, whose output layer has the rows of the draft vocabulary.

        Tensors are shared. The modules are new, because a runtime may exchange them.

        storage: as in `specdec.model.runtime.linear`.
        """
        model = sharing(self.model)
        require_storage(storage, "drafter.storage")
        output = model.get_output_embeddings()
        if self.vocabulary is not None or not isinstance(output, PackedLinear):
            model.set_output_embeddings(linear(*output_rows(target, self.vocabulary), fast=False))
        if target.runtime is not None and target.dtype is torch.float32:
            pack(model, storage)
        return model

    def as_target(self, target: TargetModel, name: str, storage: str = STORED, prove: bool = True) -> TargetModel:
        """Return the student as a model with a cache, on the kernel and the runtime of the target it drafts for.

        Args:
            target: the model to draft for.
            name: name of the student in messages.
            storage: as in `specdec.model.runtime.linear`.
            prove: as in `TargetModel`; False for layers that read something else than embeddings, which no stock
                forward can check.
        """
        stock = target.runtime is None and target.device.type == "cpu"  # CUDA has captured forwards instead
        runtime = "stock" if stock else "auto"
        model, kernel = self.as_model(target, storage), target.kernel.name
        return TargetModel(model, name=name, kernel=kernel, runtime=runtime, prove=prove)

    def in_precision_of(self, target: TargetModel) -> Student:
        """Return this student, or a copy in the target's dtype if that is not fp32 (in which students are trained)."""
        if target.dtype is torch.float32:
            return self
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        return copy.deepcopy(self, frozen).to(target.dtype)


def new_student(
    target: TargetModel,
    layers: Sequence[int],
    vocabulary: Int[Tensor, " rows"] | None = None,
    what: str = "recipe.layers",
) -> Student:
    """Return a new student; see `student_of`. Negative numbers count from the target's last layer.

    Args:
        target: the target.
        layers: layers to copy.
        vocabulary: as in `Student`.
        what: name used in error messages.

    Raises:
        InputError: as `student_of`.
    """
    count = target.depth
    model = student_of(target, [layer + count if layer < 0 else layer for layer in layers], what)
    return Student(model, DecoderLayers(model, len(layers), target.parts.path), vocabulary)


def output_rows(
    target: TargetModel, vocabulary: Int[Tensor, " rows"] | None
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, " rows"] | None]:
    """Return weight and bias of the target's output layer, cut to the rows of a draft vocabulary if there is one."""
    output: Any = target.model.get_output_embeddings()
    weight, bias = output.weight.detach(), getattr(output, "bias", None)
    bias = None if bias is None else bias.detach()
    if vocabulary is None:
        return weight, bias
    return weight[vocabulary], None if bias is None else bias[vocabulary]


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Return the same model with new modules that share all tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _config(model: PreTrainedModel, layers: Sequence[int], count: int) -> PreTrainedConfig:
    """Return the model's config for these layers. Options that list one value per layer are cut to them."""
    config = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(text, name, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    return config


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, tensor)
