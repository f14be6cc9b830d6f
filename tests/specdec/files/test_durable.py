"""Files and folders that are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specdec.files import durable as files
from specdec.files.durable import (
    SEAL,
    Lines,
    is_whole,
    naming,
    remove_unfinished,
    replacing,
    seal,
    write_json,
    write_text,
)


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_body_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fail() -> None:
        with replacing(file) as unfinished:
            unfinished.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_is_written_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda one, other: (calls.append("rename"), replace(one, other)))
    write_text(tmp_path / "a", "text")
    assert calls[0].endswith(".unfinished")
    assert calls[1:] == ["rename", str(tmp_path)]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_changes_places_with_the_one_before(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for text in ("first", "second"):
        with replacing(tmp_path / "folder") as unfinished:
            unfinished.mkdir()
            (unfinished / f"{text}.txt").write_text(text)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "folder",
        "folder/second.txt",
    ]


def test_a_write_that_fails_names_the_file_and_leaves_it(tmp_path: Path, small_files: int) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "before")
    with pytest.raises(OSError, match=r"File too large: '.*a\.txt'"):
        write_text(file, "x" * (small_files + 1))
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_errors_of_libraries_name_the_file(tmp_path: Path, small_files: int) -> None:
    weights = {"w": torch.zeros(small_files)}
    with pytest.raises(OSError, match=r"a\.safetensors") as caught, replacing(tmp_path / "a.safetensors") as unfinished:
        save_file(weights, unfinished)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(OSError, match=r"a\.pt"), replacing(tmp_path / "a.pt") as unfinished:
        torch.save(weights, unfinished)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), naming(Path("a")):
        raise KeyError("b")


def test_lines_are_appended_whole_or_not_at_all(tmp_path: Path, small_files: int) -> None:
    lines = Lines(tmp_path / "a.jsonl")
    lines.append([{"a": 1}, {"b": "\ud83d"}])
    whole = (tmp_path / "a.jsonl").read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == [{"a": 1}, {"b": "\ud83d"}]
    with pytest.raises(OSError, match=r"File too large: '.*a\.jsonl'"):
        lines.append([{"a": "x" * small_files}])
    assert (tmp_path / "a.jsonl").read_bytes() == whole
    lines.append([{"c": 3}])
    lines.close()
    lines.close()
    assert (tmp_path / "a.jsonl").read_bytes() == whole + b'{"c": 3}\n'
    Lines(tmp_path / "a.jsonl", fresh=True).close()
    assert (tmp_path / "a.jsonl").read_bytes() == b""


def test_a_sealed_folder_knows_whether_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    (folder / "inside").mkdir(parents=True)
    for name in ("a", "inside/b"):
        (folder / name).write_bytes(b"12345678")
    assert not is_whole(folder)
    seal(folder)
    assert is_whole(folder)
    for content in (b"", b"1234", b"123456789", b"12345679"):
        (folder / "inside/b").write_bytes(content)
        assert not is_whole(folder)
    (folder / "inside/b").write_bytes(b"12345678")
    assert is_whole(folder)  # another time, the same bytes
    (folder / "a").unlink()
    assert not is_whole(folder)
    (folder / SEAL).write_text("{")
    assert not is_whole(folder)


def test_a_change_that_keeps_size_and_time_is_found_by_the_hash(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1234")
    seal(tmp_path)
    time = file.stat().st_mtime_ns
    file.write_bytes(b"1235")
    os.utime(file, ns=(time, time))
    assert is_whole(tmp_path)
    assert not is_whole(tmp_path, deep=True)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.json.0123abcd.unfinished", "a.json", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / ".b.0123abcd.unfinished").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.json"]
