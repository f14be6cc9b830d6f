"""GGUF files: converted once to a `from_pretrained` folder in fp32, with the file's own blocks beside it.

transformers reads the file and may store rows in another order (the queries and keys of a Llama), so every row is found
again by its values. A matrix of which a row is not found has no blocks and stays in fp32.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specdec.errors import InputError
from specdec.files.home import cache_folder, cached
from specdec.model.loading.faults import faults
from specdec.model.loading.quiet import quiet
from specdec.model.runtime.blocks import FORMATS
from specdec.model.runtime.storage import Blocks

BLOCKS = "gguf_blocks.safetensors"
MAGIC = b"GGUF"
SPLIT = "split.count"  # field of a file that is one of several
_VERSION = "1"  # version of the converted folder; raise it when the conversion changes
_ROWS = 4096  # rows that are hashed at a time


def gguf_folder(path: str, tokenizer: bool, option: str = "target.path") -> Path:
    """Return the `from_pretrained` folder of a GGUF file, converted at the first call and kept in the cache folder.

    Args:
        path: the file.
        tokenizer: whether its tokenizer is needed.
        option: name used in error messages.

    Raises:
        InputError: no such file, no GGUF file, one of several parts, a truncated one, an architecture or a format that
            transformers does not read, or no tokenizer.
    """
    source = Path(path)
    _require_gguf(source, option)
    state = source.stat()
    key = f"{_VERSION} {tokenizer} {source.resolve()} {state.st_size} {state.st_mtime_ns}"
    name = f"targets/{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def make(folder: Path) -> None:
        print(f"Unpacking {source.name} to {cache_folder()} (once)", file=sys.stderr)  # noqa: T201
        fix = "choose a GGUF file that transformers reads, or the model's own checkpoint (target=hf)"
        convert(source, folder, option, "a whole GGUF file of a causal LM", fix, tokenizer)

    return cached(name, make)


def convert(source: Path, folder: Path, option: str, expected: str, fix: str, tokenizer: bool = True) -> None:
    """Write a GGUF file as a `from_pretrained` folder in fp32, and the blocks of its matrices (`read_blocks`).

    Args:
        source: the file.
        folder: an empty folder.
        option: name used in error messages.
        expected, fix: used in error messages.
        tokenizer: whether to write its tokenizer too.

    Raises:
        InputError: it cannot be read.
    """
    with quiet(), faults(source.name, option, expected=expected, fix=fix):
        reader = _BoundedReader(str(source))
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # Loading has turned the weights into plain fp32 tensors: the model is no longer quantised.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        _write_blocks(_found_again(reader, model), folder / BLOCKS)
    if tokenizer:
        group = option.partition(".")[0]
        none = f"pass {group}.tokenizer=FOLDER or a hub id"
        with quiet(), faults(source.name, option, expected="a GGUF file with a tokenizer", fix=none):
            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


class _BoundedReader(gguf.GGUFReader):
    """Reads nothing beyond the end of the file, where a damaged length would have `gguf` read for ever.

    Raises:
        ValueError: a field ends behind the file.
    """

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"a field that ends at byte {end:,} of {len(self.data):,}")
        return super()._get(offset, dtype, count, override_order)


def read_blocks(folder: Path) -> Blocks:
    """Return the blocks of a converted folder: by parameter, block format and bytes of its rows. Empty if none."""
    if not (folder / BLOCKS).is_file():
        return {}
    with safe_open(folder / BLOCKS, framework="pt") as file:
        forms: Mapping[str, str] = file.metadata()
        return {name: (forms[name], file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _write_blocks(blocks: Iterator[tuple[str, str, Tensor]], file: Path) -> None:
    found = {name: (form, raw) for name, form, raw in blocks}
    save_file({name: raw for name, (_, raw) in found.items()}, file, {name: form for name, (form, _) in found.items()})


def _found_again(reader: gguf.GGUFReader, model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """Yield parameter, format and bytes of each matrix all of whose rows are those of one tensor of the file."""
    rows: dict[tuple[int, ...], list[tuple[Any, dict[int, int]]]] = {}
    for tensor in reader.tensors:
        if tensor.tensor_type.name in FORMATS and tensor.data.ndim == 2:
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
            numbers = {key: number for number, key in enumerate(_hashes(values).tolist())}
            rows.setdefault(tuple(values.shape), []).append((tensor, numbers))
    for name, weight in model.named_parameters():
        hashes = _hashes(weight.detach()).tolist() if tuple(weight.shape) in rows else []
        for tensor, numbers in rows.get(tuple(weight.shape), []):
            if all(key in numbers for key in hashes):
                order = np.array([numbers[key] for key in hashes])
                yield name, tensor.tensor_type.name, torch.from_numpy(tensor.data[order])
                break


def _hashes(values: Tensor) -> Int[Tensor, " rows"]:
    """Return a hash of the bits of each row."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, values.shape[1:], generator=generator)
    parts = [(some.contiguous().view(torch.int32).long() * factors).sum(1) for some in values.split(_ROWS)]
    return torch.cat(parts)


def _require_gguf(source: Path, option: str) -> None:
    """Refuse what is no GGUF file by its first bytes, or one of several parts by its name.

    Raises:
        InputError: what it is instead.
    """
    expected, got = "a GGUF file", ""
    beginning = b""
    if source.is_file():
        with source.open("rb") as file:
            beginning = file.read(len(MAGIC))
    if not source.is_file():
        got, fix = f"{str(source)!r}, which is no file", "check the path"
    elif beginning != MAGIC:
        got, fix = f"{source.name!r}, which begins with {beginning!r}", "choose another file, or download it again"
    elif "-of-" in source.stem and source.stem.rpartition("-of-")[2].isdigit():
        got, fix = f"{source.name!r}, one of several parts", "merge them with llama.cpp's gguf-split --merge"
        expected = "a GGUF file that is whole"
    if got:
        raise InputError(option, expected=expected, got=got, fix=fix)
