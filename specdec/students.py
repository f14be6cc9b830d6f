"""Smaller models made of a target's own layers: what is trained to guess its text.

A student is an ordinary model of the same class, so that everything that runs the target runs it too. Its layers and
its final norm are copies; embeddings and output layer are the target's own tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.errors import InputError
from specdec.runtime.quantised import QuantisedLinear
from specdec.target import TargetModel


def student_of(target: TargetModel, layers: Sequence[int], what: str = "recipe.layers") -> PreTrainedModel:
    """A model with copies (fp32) of the given layers of the target, counted from 0, in that order. They and the final
    norm can be trained; everything else is frozen, and shared with the target.

    Raises:
        InputError: no layers, one the target does not have, or weights in a form that cannot be trained.
    """
    count, parts = len(target.layers), target.parts
    if not layers or not all(0 <= layer < count for layer in layers):
        expected = f"layers of the target {target.name}, counted from 0 to {count - 1}"
        raise InputError(what, expected=expected, got=list(layers), fix="name at least one that it has")
    if any(isinstance(module, QuantisedLinear) for module in target.model.modules()):
        expected, fix = "weights that can be trained", "use target.weights=stored"
        raise InputError("target.weights", expected=expected, got="quantised ones", fix=fix)

    def source(name: str) -> str:
        """The target's name of what becomes the student's `name`."""
        place = name.removeprefix(f"{parts.path}.")
        number, _, rest = place.partition(".")
        return name if place == name else f"{parts.path}.{layers[int(number)]}.{rest}"

    frozen: dict[int, nn.Parameter] = {}  # tied tensors stay one
    with target.stock() as model:
        with torch.device("meta"):
            student: PreTrainedModel = type(model)(_config(model, layers, count))
        tensors = dict(model.named_parameters(remove_duplicate=False))
        for name, _ in list(student.named_parameters(remove_duplicate=False)):
            tensor = tensors[source(name)].detach()
            if name.startswith((f"{parts.path}.", f"{parts.norm}.")):
                _put(student, name, nn.Parameter(tensor.float().clone()))
            else:
                _put(student, name, frozen.setdefault(tensor.data_ptr(), nn.Parameter(tensor, requires_grad=False)))
        buffers = dict(model.named_buffers())
        for name, _ in list(student.named_buffers()):
            _put(student, name, buffers[source(name)].clone())
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()


def _config(model: PreTrainedModel, layers: Sequence[int], count: int) -> PreTrainedConfig:
    """The model's, for these layers: what it lists layer by layer, too."""
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
