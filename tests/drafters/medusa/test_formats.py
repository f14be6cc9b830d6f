"""Every published layout, built here by hand; round trips; files that are not what they should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from drafters.medusa import files
from drafters.medusa.formats import read_heads, write_official, write_vllm
from drafters.medusa.heads import MedusaHeads, output_weight
from specdec.errors import InputError
from specdec.model.target import TargetModel
from tests.drafters.medusa.made import random_heads

K, L, DIM, VOCAB = 3, 2, 8, 20
MAP = [17, 2, 5, 11]  # vLLM's token_map needs no order
Layout = Callable[[Path], None]


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = torch.stack([torch.stack([numbers(DIM, DIM, seed=10 * i + j) for i in range(K)]) for j in range(L)])
BIAS = torch.stack([torch.stack([numbers(DIM, seed=100 + 10 * i + j) for i in range(K)]) for j in range(L)])
OUTPUT = torch.stack([numbers(VOCAB, DIM, seed=200 + i) for i in range(K)])
BASE = {"model.embed_tokens.weight": torch.zeros(2, 2), "model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)}


def blocks(key: str, biases: bool = True, layers: int = L) -> dict[str, Tensor]:
    named = (("weight", WEIGHT), ("bias", BIAS)) if biases else (("weight", WEIGHT),)
    places = [(i, j) for i in range(K) for j in range(layers)]
    return {key.format(i=i, j=j, kind=kind): t[j, i].clone() for i, j in places for kind, t in named}


def outputs(key: str, rows: list[int] | None = None) -> dict[str, Tensor]:
    return {key.format(i=i): (OUTPUT[i] if rows is None else OUTPUT[i][rows]).clone() for i in range(K)}


def config(folder: Path, **content: object) -> None:
    (folder / "config.json").write_text(json.dumps(content))


def official_1_pickle(folder: Path) -> None:
    torch.save(blocks("{i}.{j}.linear.{kind}") | outputs("{i}.2.weight"), folder / "medusa_lm_head.pt")
    config(folder, medusa_num_heads=K, medusa_num_layers=L, base_model_name_or_path="lmsys/vicuna-7b-v1.3")


def official_2(folder: Path) -> None:
    save_file(blocks("{i}.{j}.linear.{kind}"), folder / "medusa_lm_head.safetensors")
    config(folder, medusa_num_heads=K, medusa_num_layers=L, version="2")


def official_2_pickle(folder: Path) -> None:
    torch.save(blocks("{i}.{j}.linear.{kind}"), folder / "medusa_lm_head.pt")


def tgi_1(folder: Path) -> None:
    save_file(blocks("{i}.{j}.linear.{kind}") | outputs("{i}.2.weight"), folder / "medusa_lm_head.safetensors")
    config(folder, medusa_num_heads=K, medusa_num_layers=L)


def full_model(folder: Path) -> None:
    """A whole checkpoint in two shards, the heads across both."""
    heads = blocks("medusa_head.{i}.{j}.linear.{kind}") | outputs("medusa_head.{i}.2.weight")
    first = dict(list(heads.items())[:5]) | BASE
    second = dict(list(heads.items())[5:]) | {"lm_head.weight": torch.zeros(2, 2)}
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    shards = dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(second, "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    config(folder, medusa_num_heads=K, num_hidden_layers=32, hidden_size=4096, vocab_size=32000)


def full_model_pickle(folder: Path) -> None:
    heads = blocks("medusa_head.{i}.{j}.linear.{kind}") | outputs("medusa_head.{i}.2.weight")
    torch.save(heads | BASE, folder / "pytorch_model.bin")


def vllm(folder: Path) -> None:
    tensors = blocks("blocks.{i}.layers.{j}.{kind}") | outputs("lm_heads.{i}.weight")
    save_file(tensors, folder / "model.safetensors")
    config(
        folder, model_type="medusa", hidden_size=DIM, vocab_size=VOCAB, truncated_vocab_size=VOCAB, num_heads=K,
        num_hidden_layers=L, medusa_fc_bias=True, original_lm_head=False,
    )  # fmt: skip


def vllm_shared(folder: Path) -> None:
    tensors = blocks("blocks.{i}.layers.{j}.{kind}") | {"lm_heads.0.weight": OUTPUT[0].clone()}
    save_file(tensors, folder / "model.safetensors")
    config(folder, num_heads=K, num_hidden_layers=L, medusa_fc_bias=True, original_lm_head=True)


def vllm_token_map(folder: Path) -> None:
    tensors = blocks("blocks.{i}.layers.{j}.{kind}") | outputs("lm_heads.{i}.weight", MAP)
    save_file(tensors | {"token_map": torch.tensor(MAP)}, folder / "model.safetensors")
    config(folder, num_heads=K, num_hidden_layers=L, medusa_fc_bias=True, truncated_vocab_size=len(MAP))


def vllm_token_map_beside_whole_layers(folder: Path) -> None:
    tensors = blocks("medusa_heads.blocks.{i}.layers.{j}.{kind}") | outputs("medusa_heads.lm_heads.{i}.weight")
    save_file(tensors | {"token_map": torch.tensor(MAP)}, folder / "model.safetensors")


def tensorrt_llm(folder: Path) -> None:
    tensors = blocks("medusa_heads.{i}.medusa_layers.{j}.linear.{kind}") | outputs("medusa_heads.{i}.lm_head.weight")
    save_file(tensors | {"transformer.layers.0.mlp.fc.weight": torch.zeros(2, 2)}, folder / "rank0.safetensors")


OWN, SHARED, MAPPED = "own", "shared", "mapped"
LAYOUTS: list[tuple[Layout, str, str, int]] = [  # how it is built, the layout, the output layer, tensors left out
    (official_1_pickle, "official", OWN, 0),
    (official_2, "official", SHARED, 0),
    (official_2_pickle, "official", SHARED, 0),
    (tgi_1, "official", OWN, 0),
    (full_model, "official", OWN, 3),
    (full_model_pickle, "official", OWN, 2),
    (vllm, "vLLM", OWN, 0),
    (vllm_shared, "vLLM", SHARED, 1),
    (vllm_token_map, "vLLM", MAPPED, 0),
    (vllm_token_map_beside_whole_layers, "vLLM", MAPPED, 0),
    (tensorrt_llm, "TensorRT-LLM", OWN, 1),
]


def require_as_built(heads: MedusaHeads, output: str) -> None:
    assert torch.equal(heads.weight, WEIGHT)
    assert torch.equal(heads.bias, BIAS)
    order = sorted(MAP) if output == MAPPED else None
    assert (heads.vocabulary is None) == (order is None)
    if heads.vocabulary is not None:
        assert heads.vocabulary.tolist() == order
    assert (heads.output is None) == (output == SHARED)
    if heads.output is not None:
        assert torch.equal(heads.output, OUTPUT if order is None else OUTPUT[:, order])


@pytest.mark.parametrize(("build", "layout", "output", "left_out"), LAYOUTS, ids=lambda v: getattr(v, "__name__", ""))
def test_published_layouts(tmp_path: Path, build: Layout, layout: str, output: str, left_out: int) -> None:
    build(tmp_path)
    read = read_heads(str(tmp_path))
    require_as_built(read.heads, output)
    assert (read.layout, len(read.dropped), read.notes, read.tree) == (layout, left_out, [], None)
    expected = 2 * K * L + (K if output != SHARED else 0) + (1 if output == MAPPED else 0)
    assert len(read.mapped) == expected  # every tensor is accounted for, in one list or the other


def test_one_block_and_no_bias(tmp_path: Path) -> None:
    """TGI's version 2 has one block; vLLM's heads without `medusa_fc_bias` have no biases."""
    save_file(blocks("{i}.{j}.linear.{kind}", layers=1), tmp_path / "medusa_lm_head.safetensors")
    assert torch.equal(read_heads(str(tmp_path)).heads.weight, WEIGHT[:1])
    other = tmp_path / "other"
    other.mkdir()
    tensors = blocks("blocks.{i}.layers.{j}.{kind}", biases=False) | outputs("lm_heads.{i}.weight")
    save_file(tensors, other / "model.safetensors")
    config(other, num_heads=K, num_hidden_layers=L, medusa_fc_bias=False)
    read = read_heads(str(other))
    assert read.notes == []
    assert torch.equal(read.heads.weight, WEIGHT)
    assert not read.heads.bias.any()


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    official_2(tmp_path)
    (tmp_path / "medusa_lm_head.pt").write_bytes(b"never opened")
    require_as_built(read_heads(str(tmp_path)).heads, SHARED)
    require_as_built(read_heads(str(tmp_path / "medusa_lm_head.safetensors")).heads, SHARED)


def test_the_weights_are_believed_and_the_config_is_contradicted(tmp_path: Path) -> None:
    """The published Vicuna configs say 2 heads; a false `medusa_fc_bias` would drop every bias."""
    official_1_pickle(tmp_path)
    config(tmp_path, medusa_num_heads=2, medusa_num_layers=1)
    read = read_heads(str(tmp_path))
    require_as_built(read.heads, OWN)
    assert read.notes == [
        f"{tmp_path}: config.json says medusa_num_heads = 2, the weights say 3: the weights are believed",
        f"{tmp_path}: config.json says medusa_num_layers = 1, the weights say 2: the weights are believed",
    ]
    other = tmp_path / "other"
    other.mkdir()
    vllm(other)
    says = {"hidden_size": 4096, "medusa_fc_bias": False, "original_lm_head": True, "logit_scale": 2.0}
    config(other, num_heads=K, num_hidden_layers=L, **says)
    read = read_heads(str(other))
    require_as_built(read.heads, OWN)
    for name, fact in (("hidden_size", 8), ("medusa_fc_bias", True), ("original_lm_head", False)):
        assert any(f"config.json says {name} = {says[name]}, the weights say {fact}" in note for note in read.notes)
    assert read.notes[-1].endswith("logit_scale = 2.0 in config.json is left out: it changes no rank")


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("vocabulary", [None, torch.tensor([3, 40, 41])], ids=["whole", "draft vocabulary"])
@pytest.mark.parametrize("to", ["official", "vllm"])
def test_round_trips(tmp_path: Path, tiny: TargetModel, to: str, own: bool, vocabulary: Tensor | None) -> None:
    made = random_heads(tiny, 2, 2, own, vocabulary)
    if to == "official":
        keys = write_official(made, tmp_path, "tiny", torch.float32)
    else:
        keys = write_vllm(made, tmp_path, tiny, torch.float32)
    read = read_heads(str(tmp_path))
    assert read.notes == []
    assert {key for key, _ in [*read.mapped, *read.dropped]} == set(keys)
    for name, tensor in made.state_dict().items():
        assert torch.equal(read.heads.state_dict()[name], tensor)
    assert set(read.heads.state_dict()) == set(made.state_dict())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted({"config.json", *tensor_files(to)})


def test_a_single_head_that_shares_the_output_layer_does_so_after_vllm_too(tmp_path: Path, tiny: TargetModel) -> None:
    write_vllm(random_heads(tiny, 1), tmp_path, tiny)
    read = read_heads(str(tmp_path))
    assert (read.heads.output, read.notes, len(read.dropped)) == (None, [], 1)


def test_weights_too_large_for_16_bit_are_not_written(tmp_path: Path, tiny: TargetModel) -> None:
    made = random_heads(tiny, 1)
    with torch.no_grad():
        made.bias[0, 0, 0] = 1e6
    with pytest.raises(
        InputError, match=r"dtype: expected weights that torch.float16 can hold, got NaN or infinity; use"
    ):
        write_official(made, tmp_path / "new", "tiny")
    assert not (tmp_path / "new").exists()


def tensor_files(to: str) -> list[str]:
    return ["medusa_lm_head.safetensors" if to == "official" else "model.safetensors"]


def test_official_version_2_on_disk(tmp_path: Path, tiny: TargetModel) -> None:
    write_official(random_heads(tiny, 2), tmp_path, "tiny")
    tensors = load_file(tmp_path / "medusa_lm_head.safetensors")
    assert {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} == {
        f"{i}.0.linear.{kind}": (shape, torch.float16)
        for i in range(2)
        for kind, shape in (("weight", (64, 64)), ("bias", (64,)))
    }
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "medusa_num_heads": 2,
        "medusa_num_layers": 1,
        "base_model_name_or_path": "tiny",
        "version": "2",
    }


def test_vllm_on_disk(tmp_path: Path, tiny: TargetModel) -> None:
    """Shared heads carry the target's output layer once, cut to the draft vocabulary; biases are declared; no key
    besides vLLM's own holds "num" with "heads" or "layers" (its loader would take it for one of them)."""
    vocabulary = torch.tensor([3, 40, 41])
    write_vllm(random_heads(tiny, 2, vocabulary=vocabulary), tmp_path, tiny, torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors["lm_heads.0.weight"], output_weight(tiny)[vocabulary])
    assert torch.equal(tensors["token_map"], vocabulary)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["medusa_fc_bias"], written["original_lm_head"]) == (True, True)
    assert (written["vocab_size"], written["truncated_vocab_size"]) == (len(output_weight(tiny)), 3)
    counts = [key for key in written if "num" in key and ("heads" in key or "layers" in key)]
    assert sorted(counts) == ["num_heads", "num_hidden_layers"]


@pytest.mark.parametrize(
    ("own", "vocabulary", "got"),
    [
        (False, None, "these share the target's"),
        (True, torch.tensor([1]), "these know only some of the target's tokens"),
    ],
)
def test_vllm_needs_the_target_where_the_heads_do(
    tmp_path: Path, tiny: TargetModel, own: bool, vocabulary: Tensor | None, got: str
) -> None:
    with pytest.raises(InputError) as error:
        write_vllm(random_heads(tiny, 2, 1, own, vocabulary), tmp_path, None)
    assert str(error.value) == (
        f"target: expected heads with whole output layers of their own, got {got}; pass target=..."
    )
    assert list(tmp_path.iterdir()) == []


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pickled-code-ran",)


HEADS = blocks("{i}.{j}.linear.{kind}") | outputs("{i}.2.weight")
VLLM = blocks("blocks.{i}.layers.{j}.{kind}") | outputs("lm_heads.{i}.weight")


def saved(tensors: dict[str, Tensor], name: str = "medusa_lm_head.safetensors", cut: int | None = None) -> Layout:
    """A file of these tensors, of which only the first bytes are there."""

    def build(folder: Path) -> None:
        (torch.save if name.endswith(".pt") else save_file)(tensors, folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:cut])

    return build


def without(*gone: str) -> Layout:
    return saved({key: tensor for key, tensor in HEADS.items() if not key.startswith(gone)})


def pickled_code(folder: Path) -> None:
    torch.save({"0.0.linear.weight": Malicious()}, folder / "medusa_lm_head.pt")


def missing_shard(folder: Path) -> None:
    shards = {"medusa_head.0.0.linear.weight": "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def tensor_parallel(folder: Path) -> None:
    tensorrt_llm(folder)
    save_file(BASE, folder / "rank1.safetensors")


def no_json(folder: Path) -> None:
    official_2(folder)
    (folder / "config.json").write_text("{")


BAD: dict[str, tuple[Layout, str]] = {
    "pickled code": (
        pickled_code, "medusa_lm_head.pt with tensors only, got a pickle that would run code; do not trust it",
    ),
    "truncated pickle": (
        saved(HEADS, "medusa_lm_head.pt", 2000), "a whole medusa_lm_head.pt, got a corrupt or truncated one",
    ),
    "truncated": (
        saved(HEADS, cut=-5), "a whole medusa_lm_head.safetensors, got a corrupt or truncated one",
    ),
    "no safetensors": (
        saved(HEADS, cut=3), "a whole medusa_lm_head.safetensors, got a corrupt or truncated one",
    ),
    "a key is missing": (
        without("1.1.linear.bias"),
        "3 heads of 2 blocks, as the other keys say, got no bias of head 1, block 1; a truncated file? fetch it again",
    ),
    "a head is missing": (
        without("1."), "3 heads of 2 blocks, as the other keys say, got no weight of head 1, block 0; a truncated",
    ),
    "an output layer is missing": (
        without("1.2.weight"), "an output layer for every head, or one for all, got none of head 1; check the file",
    ),
    "another shape": (
        saved(HEADS | {"2.1.linear.weight": torch.zeros(DIM, 3)}), "`2.1.linear.weight` of shape (8, 8), got (8, 3)",
    ),
    "another vocabulary": (
        saved(HEADS | {"2.2.weight": torch.zeros(VOCAB + 1, DIM)}), "`2.2.weight` of shape (20, 8), got (21, 8)",
    ),
    "a deeper head": (
        saved(HEADS | {"2.3.weight": torch.zeros(VOCAB, DIM)}),
        "the output layer of head 2 after 2 blocks, got `3.weight`",
    ),
    "not finite": (
        saved(HEADS | {"2.0.linear.bias": torch.full((DIM,), torch.nan)}), "finite weights, got NaN or infinity",
    ),
    "something else": (
        saved(BASE, "model.safetensors"), "keys of Medusa heads (`0.0.linear.weight` or the like), got model.embed_to",
    ),
    "ids that repeat": (
        saved(VLLM | {"token_map": torch.tensor([4, 4])}, "model.safetensors"),
        "`token_map` with different token ids >= 0, got ids that repeat or are negative",
    ),
    "ids beyond the rows": (
        saved(VLLM | {"token_map": torch.tensor([4, VOCAB])}, "model.safetensors"),
        "`token_map` with ids below 20, got 20",
    ),
    "a missing shard": (missing_shard, "the shard model-1.safetensors, got no such file; fetch it again"),
    "tensor-parallel": (
        tensor_parallel, "one file for the whole model, got tensor-parallel ranks; convert with tp_size 1",
    ),
    "a config that is no JSON": (no_json, "a whole config.json, got a corrupt or truncated one"),
    "nothing": (lambda folder: None, "one of medusa_lm_head.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    build, message = BAD[name]
    build(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        read_heads(str(tmp_path), "heads")
    assert str(error.value).startswith(f"heads: expected in '{tmp_path}' ")
    assert message in str(error.value)
    assert sorted(tmp_path.iterdir()) == before  # pickled code has not run


def test_a_hub_id_is_fetched_file_by_file_and_read_from_the_cache_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_model(tmp_path)
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        assert repository == "someone/heads"
        asked.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(files, "list_repo_files", lambda _: [file.name for file in tmp_path.iterdir()])
    monkeypatch.setattr(files, "hf_hub_download", download)
    require_as_built(read_heads("someone/heads").heads, OWN)
    assert set(asked) == {file.name for file in tmp_path.iterdir()}  # and nothing the repository does not hold

    def unreachable(_: str) -> list[str]:
        raise ConnectionError("no way to the hub\nand more")

    def cached(repository: str, local_files_only: bool) -> str:
        assert local_files_only
        if repository != "someone/heads":
            raise LocalEntryNotFoundError("nothing cached")
        return str(tmp_path)

    monkeypatch.setattr(files, "list_repo_files", unreachable)
    monkeypatch.setattr(files, "snapshot_download", cached)
    require_as_built(read_heads("someone/heads").heads, OWN)
    with pytest.raises(InputError) as error:
        read_heads("someone/nothing", "heads")
    assert str(error.value) == (
        "heads: expected a folder, a file or a hub id, got 'someone/nothing' (no way to the hub); check the spelling"
    )
