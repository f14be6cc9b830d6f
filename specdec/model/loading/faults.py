"""Errors while a checkpoint is read, as one line each: which file, what is in it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from specdec.errors import InputError
from specdec.files.checked import read_json
from specdec.files.weights import LFS

NOT_OURS = (torch.OutOfMemoryError, MemoryError)  # the entry points report these themselves
EXPECTED = "the hub id or the folder of a causal language model"

CODE = "Weights only load failed"  # torch's message when it refuses a pickle that would run code

# (words of a message, what to do). The first match counts; without a match, spelling or access is the likely cause.
ADVICE = (
    ("trust_remote_code", "read the code in the checkpoint, then pass {target}.trust_remote_code=true"),
    ("custom code", "read the code in the checkpoint, then pass {target}.trust_remote_code=true"),
    ("does not recognize this architecture", "update transformers, or choose another model"),
    ("pip install", "install what it names"),
    ("does not appear to have a file named", "download the missing file"),
    ("No such file or directory", "download the missing file"),
    ("no file named", "download the weights (model.safetensors, or all of its parts)"),
    ("num_hidden_layers", "mend config.json"),
    ("Class validation error", "mend config.json"),
    ("size mismatch", "mend the sizes in config.json, or download it again"),
    ("paging file", "free some memory"),
)


@contextmanager
def faults(
    name: str, option: str, config: PreTrainedConfig | None = None, expected: str = EXPECTED, fix: str | None = None
) -> Iterator[None]:
    """Turn every error of `transformers` and of the libraries under it into one line.

    Args:
        name: hub id or folder of the checkpoint.
        option: name used in error messages.
        config: the checkpoint's config, once it is known; it tells whether the weights are quantised.
        expected: used in the error message.
        fix: advice if nothing more specific is known; None to choose it by the words of the error.

    Raises:
        InputError: the line. Out-of-memory errors are not changed.
    """
    try:
        yield
    except (InputError, *NOT_OURS):
        raise
    except Exception as error:  # some twenty kinds are raised for missing, unreachable, truncated or malformed files
        raise _line(error, name, option, config, expected, fix) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with the next one if it ends in a colon.

    Errors other than OSError and ValueError are preceded by their type.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return message if isinstance(error, OSError | ValueError) and message else f"{type(error).__name__}: {message}"


def _line(
    error: Exception, name: str, option: str, config: PreTrainedConfig | None, expected: str, fix: str | None
) -> InputError:
    target = option.partition(".")[0]
    if broken := broken_file(Path(name)):
        return _torn(name, option, broken)
    quantised: Any = getattr(config, "quantization_config", None)
    if quantised:
        settings = quantised if isinstance(quantised, dict) else quantised.to_dict()
        return InputError(
            option, expected="weights that can be read on this machine",
            got=f"{name!r}, quantised by {settings.get('quant_method')} ({first_line(error)})",
            fix=f"take the checkpoint that is not quantised and pass {target}.storage=int8 or int4",
        )  # fmt: skip
    if CODE in str(error):
        got = f"{name!r}, whose weights are a pickle that holds more than tensors and could run code"
        return InputError(option, expected="weights as tensors alone", got=got, fix="take a checkpoint in safetensors")
    torn = isinstance(error, SafetensorError | EOFError) or "PytorchStreamReader" in str(error)
    fix = "download it again: delete its copy in the hub's cache" if torn else fix or _advice(error, target)
    return InputError(option, expected=expected, got=f"{name!r} ({first_line(error)})", fix=fix)


def require_whole(file: Path, name: str, option: str) -> None:
    """Refuse a broken file that `transformers` would silently ignore. A missing file is accepted.

    Raises:
        InputError: names the file.
    """
    if file.is_file() and (fault := _fault(file)):
        raise _torn(name, option, f"{file.name} is {fault}")


def _torn(name: str, option: str, broken: str) -> InputError:
    fix = "download it again (with `git lfs pull` in a git clone)"
    return InputError(option, expected="whole files", got=f"{name!r}, whose {broken}", fix=fix)


def _advice(error: Exception, target: str) -> str:
    message = str(error)
    for words, advice in ADVICE:
        if words in message:
            return advice.format(target=target)
    if not isinstance(error, OSError | ValueError):
        return "mend its config.json, or choose another model"
    return f"check the spelling and your access to the hub, or use {target}=smollm2_135m"


def broken_file(folder: Path) -> str | None:
    """Describe the first broken file of a folder; None if all are whole."""
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        if file.is_file() and (fault := _fault(file)):
            return f"{file.name} is {fault}"
    return None


def _fault(file: Path) -> str | None:
    """Describe the fault of a file whose contents do not match its name; None if there is none."""
    with file.open("rb") as handle:
        if handle.read(len(LFS)) == LFS:
            return "a git LFS pointer, not the file itself"
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            return f"torn or truncated ({first_line(error)})"
    if file.suffix == ".json":
        try:
            read_json(file)
        except ValueError as error:
            return f"no valid JSON ({first_line(error)})"
    if file.suffix == ".bin" and file.stat().st_size == 0:
        return "empty"
    return None
