"""Files from somebody else: refused before anything is appended, unpacked or believed."""

from __future__ import annotations

import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec.errors import InputError
from specdec.files.checked import read_json, read_yaml
from specdec.model.target import TargetModel
from specdec.replay.trace import TRACE_FILE, Trace
from specdec.training.text.archive import import_text
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import Origin
from specdec.trees.files import read_tree

TEXT = {"key": "ab12" * 4, "sample": 0, "id": "a", "category": "c", "temperature": 0.0, "start": 0, "tokens": 4,
        "answers": [[1, 4]], "shard": 0}  # fmt: skip


def archive(
    folder: Path, target: TargetModel, change: Callable[[dict], None] | None = None, ids: Any = (1, 2, 3, 4)
) -> Path:
    head = {"format": 1, "origin": asdict(Origin.of(target)), "sources": [], "ids": "<u2", "texts": [dict(TEXT)]}
    if change is not None:
        change(head)
    body = ids if isinstance(ids, bytes) else np.asarray(ids, "<u2").tobytes()
    file = folder / "text.xz"
    file.write_bytes(lzma.compress(json.dumps(head).encode() + b"\n" + body))
    return file


def setting(key: str, value: Any) -> Callable[[dict], None]:
    return lambda head: head["texts"][0].__setitem__(key, value)


BAD: dict[str, tuple[Callable[[dict], None] | None, Any]] = {
    "an id beyond the vocabulary": (None, (1, 2, 3, 65535)),
    "too few ids": (None, (1, 2)),
    "too many ids": (None, (1, 2, 3, 4, 5)),
    "a bomb": (None, b"\0" * 200_000_000),
    "a start beyond the ids": (setting("start", 3), (1, 2, 3, 4)),
    "a negative start": (setting("start", -1), (1, 2, 3, 4)),
    "no tokens": (setting("tokens", 0), ()),
    "negative tokens": (setting("tokens", -4), (1, 2, 3, 4)),
    "tokens that are no number": (setting("tokens", "4"), (1, 2, 3, 4)),
    "tokens that are true": (setting("tokens", True), (1,)),
    "an answer past the end": (setting("answers", [[1, 5]]), (1, 2, 3, 4)),
    "an answer that is empty": (setting("answers", [[2, 2]]), (1, 2, 3, 4)),
    "an answer of three": (setting("answers", [[0, 1, 2]]), (1, 2, 3, 4)),
    "an answer of text": (setting("answers", [["a", "b"]]), (1, 2, 3, 4)),
    "a key that is none": (setting("key", "no hash"), (1, 2, 3, 4)),
    "an id that is a list": (setting("id", [1]), (1, 2, 3, 4)),
    "a field of another version": (setting("foo", 1), (1, 2, 3, 4)),
    "another type of ids": (lambda head: head.update(ids="<f8"), (1, 2, 3, 4)),
    "ids that are objects": (lambda head: head.update(ids="O"), (1, 2, 3, 4)),
    "another format": (lambda head: head.update(format=9), (1, 2, 3, 4)),
    "texts that are none": (lambda head: head.update(texts={"a": 1}), (1, 2, 3, 4)),
    "a vocabulary that is text": (lambda head: head["origin"].update(vocab_size="many"), (1, 2, 3, 4)),
}


@pytest.mark.fault("import of text: out of range, or a bomb")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_import_leaves_the_store_as_it_was(name: str, tmp_path: Path, tiny: TargetModel) -> None:
    with Shard(tmp_path / "store", 0, Origin.of(tiny)) as shard:
        assert import_text(archive(tmp_path, tiny), shard) == 1
        before = {file.name: file.read_bytes() for file in (tmp_path / "store").glob("shard*")}
        with pytest.raises(InputError, match="expected a file written with export_to="):
            import_text(archive(tmp_path, tiny, *BAD[name]), shard)
        assert {file.name: file.read_bytes() for file in (tmp_path / "store").glob("shard*")} == before
    assert len(TextStore(tmp_path / "store").texts) == 1


@pytest.mark.fault("import of text: out of range, or a bomb")
@pytest.mark.parametrize(
    "content", [b"", b"no xz", lzma.compress(b"[" * 100_000 + b"\n"), lzma.compress(b"7\n"), lzma.compress(b"{}")]
)
def test_an_import_that_is_no_archive_is_refused(content: bytes, tmp_path: Path, tiny: TargetModel) -> None:
    (tmp_path / "text.xz").write_bytes(content)
    with Shard(tmp_path / "store", 0, Origin.of(tiny)) as shard, pytest.raises(InputError, match="export_to="):
        import_text(tmp_path / "text.xz", shard)


@pytest.mark.fault("tree from a file: out of range, or a bomb")
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [0]\npaths: [*a, *a]",
        "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\npaths: [*c,*c]",
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "paths: !!binary x",
        "paths: [[0.5]]",
        "paths: [[true]]",
        "paths: [[-1]]",
        "paths: " + "[" * 20_000,
        "\x00",
        "paths: 7",
    ],
)
def test_a_bad_tree_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "tree.yaml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"drafter.tree: expected") as caught:
        read_tree(tmp_path / "tree.yaml")
    assert "\n" not in str(caught.value)


def trace(folder: Path, change: Callable[[dict, dict], None]) -> Path:
    origin = {"drafter": "d", "target": "t", "vocabulary": 10, "temperature": 0.0, "max_new_tokens": 4, "batch_size": 1,
              "depths": 1, "ranks": 1, "tree": None, "parameters": 0}  # fmt: skip
    text = {"prompt": "p", "category": "c", "turn": 0, "repeat": 0, "batch": 0, "prompt_tokens": 1, "length": 3}
    meta: dict[str, Any] = {"origin": origin, "texts": [text]}
    arrays = {"tokens": np.array([1, 2, 3], np.int16), "target_ids": np.ones((2, 1), np.int16),
              "target_logp": np.zeros((2, 1), np.float16),
              "nodes": np.ones((2, 2), np.int16), "parents": np.zeros((2, 2), np.int16)}  # fmt: skip
    change(meta, arrays)
    np.savez_compressed(folder / TRACE_FILE, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
    return folder


def test_a_good_trace_is_read(tmp_path: Path) -> None:
    assert Trace.read(trace(tmp_path, lambda meta, arrays: None)).positions == 2


@pytest.mark.fault("trace: out of range, or a bomb")
@pytest.mark.parametrize(
    "change",
    [
        lambda meta, arrays: arrays.update(tokens=np.array([1, 2, 99], np.int16)),
        lambda meta, arrays: arrays.update(tokens=np.array([1, 2], np.int16)),
        lambda meta, arrays: arrays.update(tokens=np.array([1.5, 2, 3], "U8")),
        lambda meta, arrays: arrays.update(nodes=np.full((2, 2), 10, np.int16)),
        lambda meta, arrays: arrays.update(nodes=np.ones((5, 2), np.int16)),
        lambda meta, arrays: arrays.update(parents=np.full((2, 2), 7, np.int16)),
        lambda meta, arrays: arrays.update(target_ids=np.full((2, 1), -5, np.int16)),
        lambda meta, arrays: meta["texts"][0].update(length=-1),
        lambda meta, arrays: meta["texts"][0].update(length=10**12),
        lambda meta, arrays: meta["texts"][0].update(length="3"),
        lambda meta, arrays: meta.update(texts=[]),
        lambda meta, arrays: meta.update(texts=7),
        lambda meta, arrays: meta["origin"].update(vocabulary="ten"),
        lambda meta, arrays: meta["origin"].update(temperature=float("nan")),
        lambda meta, arrays: meta["origin"].update(foo=1),
        lambda meta, arrays: meta["texts"][0].update(foo=1),
    ],
)
def test_a_bad_trace_is_one_line(change: Callable[[dict, dict], None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run: expected a run that was recorded") as caught:
        Trace.read(trace(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.fault("trace: out of range, or a bomb")
def test_a_trace_that_unpacks_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    trace(tmp_path, lambda meta, arrays: None)
    with zipfile.ZipFile(tmp_path / TRACE_FILE) as saved:
        parts = {name: saved.read(name) for name in saved.namelist()}
    parts["nodes.npy"] += b"\0" * 50_000_000
    with zipfile.ZipFile(tmp_path / TRACE_FILE, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in parts.items():
            bomb.writestr(name, data)
    with pytest.raises(InputError, match="nodes of the shape"):
        Trace.read(tmp_path)


def test_what_is_no_json_or_yaml_is_a_value_error(tmp_path: Path) -> None:
    for text in ("[" * 100_000, "{", "\x00", "\ud800"):
        (tmp_path / "x").write_bytes(text.encode("utf-8", "surrogatepass"))
        for read in (read_json, read_yaml):
            with pytest.raises(ValueError, match=r"."):
                read(tmp_path / "x")
    with pytest.raises(OSError, match="no regular file"):
        read_json(tmp_path)
