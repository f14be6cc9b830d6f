"""Which types a checkpoint stores, read from headers within bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specdec.model.loading.headers import stored_tensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "part-1.safetensors")
    return tmp_path


def test_types_come_from_all_parts(folder: Path) -> None:
    save_file({"c": torch.zeros(2, dtype=torch.float8_e4m3fn)}, folder / "part-2.safetensors")
    shards = {"a": "part-1.safetensors", "b": "part-1.safetensors", "c": "part-2.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}), "utf-8")
    assert stored_tensors(str(folder), None) == {"a": "F32", "b": "BF16", "c": "F8_E4M3"}


def test_whole_weights_go_before_an_index(folder: Path) -> None:
    (folder / INDEX).write_text("no JSON", "utf-8")
    (folder / "part-1.safetensors").rename(folder / "model.safetensors")
    assert stored_tensors(str(folder), None) == {"a": "F32", "b": "BF16"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}', "[" * 9999],
)
def test_an_index_that_names_no_files_beside_it_is_refused(text: str, folder: Path) -> None:
    (folder / INDEX).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"."):
        stored_tensors(str(folder), None)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 64])
def test_a_part_that_is_no_safetensors_is_refused(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        stored_tensors(str(folder), None)
