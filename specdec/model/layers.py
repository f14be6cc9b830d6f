"""Find a model's decoder layers, and build a model that runs only some of them.

They are found by structure, not by a list of classes: the layers are the `nn.ModuleList` with one module per KV layer,
the final norm is the module whose output the base model returns. A part of a model is a view: new containers around the
same modules, with stand-ins for the layers that are left out. The model itself is not changed.

    layers     0  1  2  3  4  5          lower(3)   0 1 2 - - -   no norm: the residual stream comes out
                                         upper(3)   - - - 3 4 5   it is put in where layer 3 begins
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.errors import InputError


class DecoderLayers:
    """The decoder layers of a model as transformers runs it.

    Args:
        model: the model.
        count: number of layers with a KV cache.
        path: name of the module list ("model.decoder.layers"); None to look for it.

    Raises:
        InputError: no such list, or none with one module per layer.
    """

    def __init__(self, model: PreTrainedModel, count: int, path: str | None = None) -> None:
        self.count = count
        self.path = self._find(model) if path is None else path
        try:
            found = model.get_submodule(self.path)
        except AttributeError:
            found = None
        if not isinstance(found, nn.ModuleList) or len(found) != count:
            got = "nothing there" if found is None else f"{type(found).__name__} there"
            raise self._lost(model, f"{got} ({self.path!r})")
        self.norm = self._final_norm(model)

    def lower(self, model: PreTrainedModel, depth: int) -> nn.Module:
        """Return the base model with its first `depth` layers only. Its last hidden state is the residual stream."""
        kept = [layer if i < depth else _Skipped() for i, layer in enumerate(self.of(model))]
        changes: dict[str, nn.Module] = {self.path: nn.ModuleList(kept)}
        if self.norm is not None:
            changes[self.norm] = nn.Identity()
        return base_of(view(model, changes))

    def upper(self, model: PreTrainedModel, depth: int) -> PreTrainedModel:
        """Return the model without its first `depth` layers. It is called with `entering`, the residual stream after
        these."""
        kept = [_Skipped() if i < depth else layer for i, layer in enumerate(self.of(model))]
        at = min(depth, self.count - 1)
        kept[at] = _Entrance(kept[at])
        return view(model, {self.path: nn.ModuleList(kept)})

    def of(self, model: PreTrainedModel) -> nn.ModuleList:
        """Return the layers of `model`."""
        layers: Any = model.get_submodule(self.path)
        return layers

    def _find(self, model: PreTrainedModel) -> str:
        lists = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.count and all(map(_caches, module))
        ]
        if len(lists) != 1:
            raise self._lost(model, f"{len(lists) or 'no'} such lists in {type(model).__name__}")
        return lists[0]

    @torch.inference_mode()
    def _final_norm(self, model: PreTrainedModel) -> str | None:
        """Return the name of the layers' sibling that makes the last hidden state; None if a layer makes it."""
        prefix = self.path.rpartition(".")[0]
        made: dict[str, Tensor] = {}  # kept alive, so that no address is used twice

        def note(name: str) -> Any:
            def hook(_module: nn.Module, _args: object, output: object) -> None:
                if isinstance(output, Tensor):
                    made[name] = output

            return hook

        siblings = model.get_submodule(prefix).named_children()
        hooks = [child.register_forward_hook(note(name)) for name, child in siblings]
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            out = base_of(model)(input_ids=token, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        names = [name for name, output in made.items() if output.data_ptr() == out.data_ptr()]
        return f"{prefix}.{names[-1]}" if names else None

    def _lost(self, model: PreTrainedModel, got: str) -> InputError:
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        return InputError(
            "target.layer_path",
            expected=f"one nn.ModuleList of {self.count} decoder layers, as in Llama, Qwen3, GPT-NeoX or Mixtral",
            got=got,
            fix=f"name it, for instance target.layer_path={lists[0] if lists else 'model.layers'}",
        )


def base_of(model: PreTrainedModel) -> Any:
    """Return the model without its output layer.

    `base_model` is the model itself if its class names a module that it does not have (Llama 4's text model). Then the
    base is the only model inside.
    """
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inner[0] if model.base_model is model and len(inner) == 1 else model.base_model


@contextmanager
def last_hidden_states(model: PreTrainedModel) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect the last hidden states of every forward within the block, with the module that gives them.

    Most models consist of base model and output layer, some have a decoder in between. The outermost module's states
    come last.
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _args: object, output: object) -> None:
        states = getattr(output, "last_hidden_state", None)
        if states is not None:
            seen.append((module, states))

    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    hooks = [module.register_forward_hook(note) for module in inner]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def view(module: Any, changes: Mapping[str, nn.Module]) -> Any:
    """Return `module` with other submodules under the given names, sharing everything else with it."""
    shown = copy.copy(module)
    shown._modules = dict(module._modules)
    inside: dict[str, dict[str, nn.Module]] = {}
    for name, new in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            inside.setdefault(head, {})[rest] = new
        else:
            shown._modules[head] = new
    for head, deeper in inside.items():
        shown._modules[head] = view(module._modules[head], deeper)
    return shown


class _Skipped(nn.Module):
    """Stands in for a layer that is left out: returns its input."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


class _Entrance(nn.Module):
    """The first layer that runs: it reads the given residual stream, not the output of the layers before it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, _hidden: Tensor, *args: object, entering: Tensor, **kwargs: object) -> Tensor:
        out: Tensor = self.layer(entering, *args, **kwargs)
        return out


def _caches(layer: nn.Module) -> bool:
    """Whether the layer contains an attention with its own KV cache."""
    return len({getattr(module, "layer_idx", None) for module in layer.modules()} - {None}) == 1
