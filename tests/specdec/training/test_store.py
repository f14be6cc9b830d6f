"""The folder of texts: what was committed is read, what a killed writer left is cut off, and strangers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.errors import InputError
from specdec.model.load import load_tiny
from specdec.model.target import TargetModel
from specdec.training.text.archive import export_text, import_text
from specdec.training.text.features import batches, complete, teacher_forced
from specdec.training.text.shard import Shard
from specdec.training.text.store import TextStore
from specdec.training.text.texts import HIDDEN, Origin, Text, fingerprint, is_validation
from tests.conftest import tiny_draft

DIM = 64


def fill(shard: Shard, count: int, with_hidden: bool = True) -> list[list[int]]:
    """Texts of different lengths; returns their ids."""
    rows = []
    for i in range(count):
        ids = [(7 * i + j) % 250 for j in range(5 + i)]
        text = Text(f"{i:016x}", 0, f"q{i}", "test", 0.0, shard.end, len(ids), [[2, len(ids)]], shard.number)
        features = {HIDDEN: torch.full((len(ids), DIM), i / 8)} if with_hidden else {}
        shard.append(text, ids, features)
        rows.append(ids)
    return rows


@pytest.fixture
def folder(tmp_path: Path, tiny: TargetModel) -> Path:
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        fill(shard, 4)
    return tmp_path


def test_what_was_written_is_read(folder: Path, tiny: TargetModel) -> None:
    store = TextStore(folder)
    assert [store.tokens(text).tolist() for text in store.texts] == [
        [(7 * i + j) % 250 for j in range(5 + i)] for i in range(4)
    ]
    for i, text in enumerate(store.texts):
        hidden = store.feature(text, HIDDEN)
        assert hidden.dtype is torch.float16
        assert (hidden == i / 8).all()
    assert store.origin == Origin.of(tiny)


def test_frequencies_count_answers_of_the_training_split(folder: Path) -> None:
    store = TextStore(folder)
    expected = np.zeros(store.origin.vocab_size, dtype=int)
    assert (len(store.training), len(store.validation)) == (3, 1)
    for text in store.training:
        np.add.at(expected, store.tokens(text)[2:], 1)
    assert store.frequencies().tolist() == expected.tolist()


def test_shards_of_several_writers_are_one_folder(folder: Path, tiny: TargetModel) -> None:
    with Shard(folder, 1, Origin.of(tiny)) as second:
        rows = fill(second, 2)
    store = TextStore(folder)
    assert [text.shard for text in store.texts] == [0, 0, 0, 0, 1, 1]
    assert [store.tokens(text).tolist() for text in store.texts[4:]] == rows


def append_bytes(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


def cut_bytes(file: Path, count: int) -> None:
    with file.open("r+b") as out:
        out.truncate(file.stat().st_size - count)


def test_a_writer_killed_at_any_point_leaves_what_was_committed(folder: Path, tiny: TargetModel) -> None:
    before = {file.name: file.read_bytes() for file in folder.glob("shard-0.*")}
    torn = {"tokens": b"\1\2\3", "hidden": b"\0" * 999, "jsonl": b'{"key": "00000000000'}
    for stop in range(len(torn) + 1):  # data files are written in this order, the line last
        for suffix, data in list(torn.items())[:stop]:
            append_bytes(folder / f"shard-0.{suffix}", data)
        assert len(TextStore(folder).texts) == 4, "a reader must not mind"
        with Shard(folder, 0, Origin.of(tiny)):
            pass
        assert {file.name: file.read_bytes() for file in folder.glob("shard-0.*")} == before


def test_ids_that_are_gone_are_named_and_cut_when_written_again(folder: Path, tiny: TargetModel) -> None:
    cut_bytes(folder / "shard-0.tokens", 3)
    with pytest.raises(InputError, match=r"shard-0.tokens: expected 104 bytes.*torn shard.*self_distill") as error:
        TextStore(folder)
    assert "got 101" in str(error.value)
    with pytest.warns(UserWarning, match="1 sequences were torn"), Shard(folder, 0, Origin.of(tiny)) as shard:
        assert len(shard.texts) == 3
    assert len(TextStore(folder).texts) == 3


def test_features_that_are_gone_are_named_and_computed_again(tmp_path: Path, tiny: TargetModel) -> None:
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        rows = fill(shard, 3, with_hidden=False)
        complete(tiny, shard, [HIDDEN])
    whole = (tmp_path / "shard-0.hidden").read_bytes()
    cut_bytes(tmp_path / "shard-0.hidden", 5)
    store = TextStore(tmp_path)
    with pytest.raises(InputError, match="expected the feature 'hidden' of every sequence, got none for 'q2'; run"):
        store.feature(store.texts[2], HIDDEN)
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        complete(tiny, shard, [HIDDEN], batch_tokens=1)
    again = TextStore(tmp_path)
    for text, ids in zip(again.texts, rows, strict=True):
        expected = teacher_forced(tiny, torch.tensor([ids]), [HIDDEN])[HIDDEN][0]
        torch.testing.assert_close(again.feature(text, HIDDEN).float(), expected, atol=2e-3, rtol=2e-3)
    assert len((tmp_path / "shard-0.hidden").read_bytes()) == len(whole)


def test_features_missing_to_different_extents_are_made_in_one_sweep(tmp_path: Path, tiny: TargetModel) -> None:
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        rows = fill(shard, 3, with_hidden=False)
        complete(tiny, shard, [HIDDEN, "layer:1"])
    cut_bytes(tmp_path / "shard-0.layer-1", 5)  # the last sequence's
    cut_bytes(tmp_path / "shard-0.hidden", 2 * 64 * len(rows[2]) + 5)  # and one more sequence's
    read: list[int] = []
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        complete(tiny, shard, [HIDDEN, "layer:1"], on_text=read.append)
    assert sum(read) == len(rows[1]) + 2 * len(rows[2])
    store = TextStore(tmp_path)
    for text, ids in zip(store.texts, rows, strict=True):
        expected = teacher_forced(tiny, torch.tensor([ids]), [HIDDEN, "layer:1"])
        for name, values in expected.items():
            torch.testing.assert_close(store.feature(text, name).float(), values[0], atol=2e-3, rtol=2e-3)


def changed(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_changed_byte_is_noticed_and_the_sequence_is_left_out(folder: Path, tiny: TargetModel) -> None:
    changed(folder / "shard-0.tokens", 4 * 6)  # in the second sequence
    store = TextStore(folder)
    assert store.tokens(store.texts[0]).tolist() == list(range(5))
    with pytest.raises(
        InputError, match=r"shard-0.tokens: expected the bytes .*'q1'.*self_distill on the folder again"
    ):
        store.tokens(store.texts[1])
    with pytest.warns(UserWarning, match="1 sequences were damaged"):
        shard = Shard(folder, 0, Origin.of(tiny))
    with shard:
        assert [text.id for text in shard.texts] == ["q0", "q2", "q3"]
        fill(shard, 1)
    store = TextStore(folder)
    assert [text.id for text in store.texts] == ["q0", "q2", "q3", "q0"]
    for text, (number, value) in zip(store.texts, [(0, 0), (2, 2), (3, 3), (0, 0)], strict=True):
        assert store.tokens(text).tolist() == [(7 * number + j) % 250 for j in range(5 + number)]
        assert (store.feature(text, HIDDEN) == value / 8).all()


@pytest.mark.parametrize("left_out", [0, 1, 3])
def test_features_are_computed_beside_a_sequence_that_is_left_out(
    left_out: int, tmp_path: Path, tiny: TargetModel
) -> None:
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        rows = fill(shard, 4, with_hidden=False)
    changed(tmp_path / "shard-0.tokens", 4 * sum(map(len, rows[:left_out])))
    with pytest.warns(UserWarning, match="damaged"):
        shard = Shard(tmp_path, 0, Origin.of(tiny))
    with shard:
        complete(tiny, shard, [HIDDEN], batch_tokens=1)
    del rows[left_out]
    store = TextStore(tmp_path)
    for text, ids in zip(store.texts, rows, strict=True):
        expected = teacher_forced(tiny, torch.tensor([ids]), [HIDDEN])[HIDDEN][0]
        torch.testing.assert_close(store.feature(text, HIDDEN).float(), expected, atol=2e-3, rtol=2e-3)


def test_changed_features_are_named_and_computed_again(tmp_path: Path, tiny: TargetModel) -> None:
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        fill(shard, 3, with_hidden=False)
        complete(tiny, shard, [HIDDEN])
    whole = (tmp_path / "shard-0.hidden").read_bytes()
    changed(tmp_path / "shard-0.hidden", len(whole) - 7)
    store = TextStore(tmp_path)
    with pytest.raises(InputError, match=r"shard-0.hidden: .*'q2'.*delete the file and run .*features=\[hidden\]"):
        store.feature(store.texts[2], HIDDEN)
    (tmp_path / "shard-0.hidden").unlink()
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard:
        complete(tiny, shard, [HIDDEN])
    assert (tmp_path / "shard-0.hidden").read_bytes() == whole
    store = TextStore(tmp_path)
    assert len(store.feature(store.texts[2], HIDDEN)) == store.texts[2].tokens


@pytest.mark.parametrize("size", [0, 5, 12, 29])
def test_checksums_that_are_missing_or_torn_stop_nobody(size: int, folder: Path, tiny: TargetModel) -> None:
    for suffix in ("tokens", "hidden"):
        with (folder / f"shard-0.{suffix}.sums").open("r+b") as file:
            file.truncate(size)
    with Shard(folder, 0, Origin.of(tiny)) as shard:
        fill(shard, 1)
    store = TextStore(folder)
    assert len(store.texts) == 5
    for text in store.texts:
        assert len(store.tokens(text)) == len(store.feature(text, HIDDEN))


def test_a_folder_of_an_older_version_is_read(folder: Path) -> None:
    for file in folder.glob("*.sums"):
        file.unlink()
    store = TextStore(folder)
    assert [len(store.feature(text, HIDDEN)) for text in store.texts] == [5, 6, 7, 8]


def test_a_line_that_cannot_be_read_is_named(folder: Path) -> None:
    file = folder / "shard-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "nonsense\n", *lines[1:]]))
    with pytest.raises(InputError, match=r"shard-0.jsonl, line 2: expected a sequence, got b'nonsense'"):
        TextStore(folder)


def test_two_writers_of_one_shard(folder: Path, tiny: TargetModel) -> None:
    with (
        Shard(folder, 0, Origin.of(tiny)),
        pytest.raises(InputError, match="expected shard 0 to have one writer, got another process"),
    ):
        Shard(folder, 0, Origin.of(tiny))
    with Shard(folder, 0, Origin.of(tiny)) as shard:
        assert len(shard.texts) == 4


def test_another_target_or_chat_template_is_refused(folder: Path, tiny: TargetModel) -> None:
    with pytest.raises(
        InputError, match=r"expected text made with the target of tiny .* got text of tiny made with an"
    ):
        Shard(folder, 0, Origin.of(tiny_draft()))
    other = replace(Origin.of(tiny), chat_template="0" * 16)
    with pytest.raises(InputError, match="expected text made with the chat template of tiny"):
        Shard(folder, 0, other)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of self-distilled text, got no readable index.json"):
        TextStore(tmp_path)


def test_the_fingerprint_is_of_the_weights_in_any_precision() -> None:
    same = {fingerprint(load_tiny(dtype=dtype, device="cpu")) for dtype in ("float32", "bfloat16", "float64")}
    assert len(same) == 1
    assert fingerprint(load_tiny(seed=1, device="cpu")) not in same


def test_the_validation_split_is_a_twenty_fifth_of_the_prompts() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000)
    share = np.mean([is_validation(f"{2 * int(key):016x}") for key in keys])
    assert abs(share - 1 / 25) < 0.005  # 3.6 standard deviations: false alarm 3e-4, and the seed is fixed


def test_numbers_too_large_for_16_bit_are_refused(tmp_path: Path, tiny: TargetModel) -> None:
    refusal = r"expected numbers that float16 can hold, got up to 1e\+05; load the target in"
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard, pytest.raises(InputError, match=refusal):
        shard.append_feature(Text("0", 0, "q", "test", 0.0, 0, 2, []), "layer:1", torch.full((2, DIM), 1e5))


def test_layers_are_what_the_first_k_layers_give(tiny: TargetModel) -> None:
    """Counted by hand: embeddings, then each layer in turn, then the final norm."""
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    found = teacher_forced(tiny, tokens, ["layer:0", "layer:1", HIDDEN])
    with torch.inference_mode(), tiny.stock() as model:
        base = model.base_model
        states = base.embed_tokens(tokens)
        torch.testing.assert_close(found["layer:0"], states)
        rotary = base.rotary_emb(states, torch.arange(5)[None])
        mask = torch.full((1, 1, 5, 5), float("-inf")).triu(1)
        for number, layer in enumerate(base.layers, 1):
            states = layer(states, attention_mask=mask, position_embeddings=rotary)
            if number == 1:
                torch.testing.assert_close(found["layer:1"], states)
        torch.testing.assert_close(found[HIDDEN], base.norm(states))


@pytest.mark.parametrize("name", ["layer:2", "layer:-1", "logits"])
def test_features_there_are_none_of(tmp_path: Path, tiny: TargetModel, name: str) -> None:
    refusal = r"features: expected 'hidden', or 'layer:k' with k from 0 to 1, got"
    with Shard(tmp_path, 0, Origin.of(tiny)) as shard, pytest.raises(InputError, match=refusal):
        complete(tiny, shard, [name])


def test_batches_keep_the_limit_and_pad_little(folder: Path) -> None:
    texts = TextStore(folder).texts  # of 5, 6, 7 and 8 tokens
    assert list(batches(texts, 14)) == [[0, 1], [2], [3]]
    assert list(batches(texts[::-1], 100)) == [[3, 2, 1, 0]]


def test_token_ids_travel_in_a_file(folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny: TargetModel) -> None:
    there = tmp_path_factory.mktemp("there")
    size = export_text(folder, there / "ids.xz")
    assert (there / "ids.xz").stat().st_size == size
    with Shard(there / "text", 0, Origin.of(tiny)) as shard:
        assert import_text(there / "ids.xz", shard) == 4
        assert import_text(there / "ids.xz", shard) == 0
    before, after = TextStore(folder), TextStore(there / "text")
    assert after.texts == before.texts
    assert [after.tokens(t).tolist() for t in after.texts] == [before.tokens(t).tolist() for t in before.texts]


def test_files_that_cannot_be_imported(folder: Path, tmp_path: Path, tiny: TargetModel) -> None:
    file = tmp_path / "ids.xz"
    export_text(folder, file)
    with Shard(tmp_path / "other", 0, Origin.of(load_tiny(seed=1, device="cpu"))) as shard:
        with pytest.raises(InputError, match="made with another target"):
            import_text(file, shard)
        cut_bytes(file, 10)
        with pytest.raises(InputError, match=r"expected a file written with export_to=, got .*; check the path"):
            import_text(file, shard)
        assert not shard.texts
