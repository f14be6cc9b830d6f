"""Weights that are damaged, or that somebody made to do harm: one line each, and nothing is allocated for them."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drafters.eagle import head as eagle
from drafters.medusa.formats import read_heads
from drafters.shared.trained import CONFIG, WEIGHTS
from specdec.errors import InputError
from specdec.files.weights import PickledCodeError, read_tensors, require_finite, tensor_names
from specdec.model.loading.embedded import _convert
from specdec.model.target import TargetModel
from specdec.training.saving import training_tokens

STATE = {"a": torch.arange(64.0).view(8, 8), "b": torch.ones(3, dtype=torch.int64)}


def header(described: Any, body: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


SAFETENSORS = {
    "empty": b"",
    "a git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "a header beyond the file": header(one(), length=2**20),
    "a header beyond any memory": header(one(), length=2**63),
    "a shape beyond the file": header(one(shape=(2**40,), offsets=(0, 2**42))),
    "a shape that overflows": header(one(shape=(2**33, 2**33))),
    "a shape beyond its bytes": header(one(shape=(5,))),
    "a negative shape": header(one(shape=(-4,))),
    "offsets that go back": header(one(offsets=(16, 0))),
    "bytes that belong to nothing": header(one(), b"\0" * 20),
    "another type": header(one(dtype="OBJECT")),
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": header([1, 2]),
}


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=list(SAFETENSORS))
def test_bad_safetensors_are_value_errors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (read_tensors, tensor_names):
        with pytest.raises(ValueError, match=r"."):
            read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_whole_files_are_read_and_cut_ones_are_not(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    (torch.save if name.endswith(".pt") else save_file)(STATE, file)
    assert sorted(tensor_names(file)) == ["a", "b"]
    assert torch.equal(read_tensors(file, ["a"])["a"], STATE["a"])
    with pytest.raises(ValueError, match="c"):
        read_tensors(file, ["c"])
    whole = file.read_bytes()
    for share in (0.02, 0.5, 0.98):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"."):
            read_tensors(file)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.pt").mkdir()
    for name in ("pipe.safetensors", "folder.pt", "nothing.pt"):
        with pytest.raises(OSError, match=r"no regular file|No such file"):
            read_tensors(tmp_path / name)


class Harmful:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("harmed",)


@pytest.mark.fault("attempt to run code")
def test_a_pickle_gives_tensors_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.pt"
    torch.save({"a": Harmful()}, file)
    with pytest.raises(PickledCodeError):
        read_tensors(file)
    file.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(PickledCodeError):
        read_tensors(file)
    assert not (tmp_path / "harmed").exists()
    torch.save([torch.ones(1)], file)
    with pytest.raises(ValueError, match="no state dict, but list"):
        read_tensors(file)


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
def test_a_tensor_larger_than_what_is_stored_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="'a' is larger than what is stored of it"):
        read_tensors(tmp_path / "x.pt")
    torch.save({"a": torch.empty(2**40, device="meta")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="'a' is larger than what is stored of it"):
        read_tensors(tmp_path / "x.pt")
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as saved:
        parts = {name: saved.read(name) for name in saved.namelist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as changed:
        for name, data in parts.items():
            changed.writestr(name, data.replace(b"Kd", b"M\x00\x20") if name.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match="does not match"):
        read_tensors(tmp_path / "x.pt")


def test_infinite_weights_are_named() -> None:
    require_finite(STATE)
    with pytest.raises(ValueError, match="NaN or infinity in 'c'"):
        require_finite({**STATE, "c": torch.tensor([1.0, torch.inf])})


def damaged(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        change(config)
        (folder / CONFIG).write_text(json.dumps(config), "utf-8")

    return write


def changed(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return write


def cut(name: str, share: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return write


NAME = "student.vocabulary"
PARTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"{name} cut at {share}": (cut(name, share), "eagle") for name in (CONFIG, WEIGHTS) for share in (0, 0.5, 0.95)},
    "no object": (lambda folder: (folder / CONFIG).write_text("[]") and None, "holds no object"),
    "NaN layers": (damaged(lambda c: c.update(layers=float("nan"))), "layers in drafter.json must be a number from 0"),
    "too many layers": (damaged(lambda c: c.update(layers=10**9)), "not 1000000000"),
    "negative layers": (damaged(lambda c: c.update(layers=-1)), "not -1"),
    "layers that are true": (damaged(lambda c: c.update(layers=True)), "not True"),
    "no layers": (damaged(lambda c: c.pop("layers")), "not None"),
    "a target that is none": (damaged(lambda c: c.update(target=[1])), "target in drafter.json must be of type str"),
    "another drafter": (damaged(lambda c: c.update(drafter=["eagle"])), "of the drafter ['eagle']"),
    "nested deeply": (lambda folder: (folder / CONFIG).write_text("[" * 10**5) and None, "nested too deeply"),
    "NaN weights": (changed(lambda s: s[min(s)].fill_(torch.nan)), "NaN or infinity in"),
    "more layers than weights": (damaged(lambda c: c.update(layers=2)), "does not fit"),
    "another shape": (changed(lambda s: s.update({min(s): torch.ones(1)})), "does not fit"),
    "integers": (changed(lambda s: s.update({min(s): s[min(s)].long()})), "does not fit"),
    "a vocabulary beyond": (changed(lambda s: s.update({NAME: s[NAME] + 10**9})), "its vocabulary does not fit"),
    "a negative vocabulary": (changed(lambda s: s.update({NAME: s[NAME] - 10**9})), "no list of token ids"),
    "a vocabulary of fractions": (changed(lambda s: s.update({NAME: s[NAME].float()})), "no list of token ids"),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, tiny: TargetModel) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("parts")
    eagle.save_head(eagle.fresh_head(tiny, [-1], torch.arange(16)), tiny, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("name", PARTS)
def test_damaged_parts_of_a_drafter_are_one_line(
    name: str, parts: dict[str, bytes], tmp_path: Path, tiny: TargetModel
) -> None:
    for file, data in parts.items():
        (tmp_path / file).write_bytes(data)
    eagle.load_head(tmp_path, tiny)
    damage, words = PARTS[name]
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        eagle.load_head(tmp_path, tiny)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


HEADS: dict[str, dict[str, torch.Tensor]] = {
    "a head of billions": {"0.0.linear.weight": torch.ones(4, 4), "999999999.0.linear.weight": torch.ones(4, 4)},
    "an output layer of billions": {"999999999.0.weight": torch.ones(4, 4)},
    "digits without end": {f"{'9' * 5000}.0.linear.weight": torch.ones(4, 4)},
    "a weight of one number": {"0.0.linear.weight": torch.tensor(1.0)},
    "a weight of integers": {"0.0.linear.weight": torch.ones(4, 4, dtype=torch.int64)},
    "a token_map of fractions": {"blocks.0.layers.0.weight": torch.ones(4, 4), "lm_heads.0.weight": torch.ones(2, 4),
                                 "token_map": torch.tensor([0.5, 1.5])},
}  # fmt: skip


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("name", HEADS)
def test_heads_that_count_or_hold_anything_are_one_line(name: str, tmp_path: Path) -> None:
    save_file(HEADS[name], tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="heads: expected in") as caught:
        read_heads(str(tmp_path), "heads")
    assert "\n" not in str(caught.value)


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("shards", [7, ["a"], {"0.0.linear.weight": 7}, {"0.0.linear.weight": "../x.safetensors"}])
def test_an_index_names_files_beside_it(shards: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")
    with pytest.raises(InputError, match="the names of files beside it in `weight_map`, got something else"):
        read_heads(str(tmp_path), "heads")


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("text", ["", "[]", '{"tokens": NaN}', '{"tokens": -1}', '{"tokens": true}', '{"tokens": "7"}'])
def test_a_bad_record_of_training_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"expected .*NUMBER"):
        training_tokens(tmp_path)


GGUF = {
    "empty": b"",
    "cut in its head": b"GGUF" + struct.pack("<I", 3),
    "counts beyond the file": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    "a text beyond the file": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"abc",
    "an array beyond the file": b"GGUF" + struct.pack("<IQQQ3sIIQ", 3, 0, 1, 3, b"abc", 9, 4, 2**61),
    "another format": b"NONE" * 10,
}


@pytest.mark.fault("weights: damaged, out of range, or a bomb")
@pytest.mark.parametrize("content", GGUF.values(), ids=list(GGUF))
def test_a_damaged_gguf_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"target=smollm2_135m: expected a whole GGUF file .*install the wheel again"):
        _convert(tmp_path / "model.gguf", tmp_path / "to")
    assert not (tmp_path / "to").exists()
