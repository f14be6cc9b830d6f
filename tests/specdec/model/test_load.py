"""Where models come from, and what is said when they cannot be had."""

from __future__ import annotations

import multiprocessing
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from drafters.draft_model.drafter import DraftModel
from specdec.decoding.protocols import Session
from specdec.decoding.sampling import SamplingParams
from specdec.errors import InputError
from specdec.files.home import cache_folder
from specdec.model.load import byte_tokenizer, load, load_tiny
from specdec.model.loading import embedded
from specdec.model.target import TargetModel
from specdec.model.vocabularies import shared_tokens


def test_the_cache_folder_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SPECDEC_HOME")
    assert cache_folder().name == "specdec"


def test_a_missing_wheel_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    monkeypatch.setattr(embedded.metadata, "distribution", absent)
    with pytest.raises(InputError) as error:
        load("smollm2_135m")
    assert "make setup" in str(error.value)
    assert "target=hf target.name=HuggingFaceTB/SmolLM2-135M-Instruct" in str(error.value)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]  # nothing half-written


def _convert_slowly(_source: Path, folder: Path) -> None:
    (folder / "first").touch()
    time.sleep(0.3)
    (folder / "last").touch()


def _made(folder: Path) -> list[str]:
    """Its files, without the seal."""
    return sorted(file.name for file in folder.iterdir() if file.name in ("first", "last"))


def _ask(home: str, answers: multiprocessing.Queue) -> None:
    import os

    os.environ["SPECDEC_HOME"] = home
    embedded._convert = _convert_slowly
    embedded.wheel_file = Path
    folder = embedded.embedded_folder()
    answers.put(_made(folder))


def test_two_processes_at_once_convert_once_and_see_it_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue = context.Queue()
    processes = [context.Process(target=_ask, args=(str(tmp_path), answers)) for _ in range(2)]
    for process in processes:
        process.start()
    seen = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert seen == [["first", "last"]] * 2
    assert not list(tmp_path.glob("*.unfinished"))


def test_what_a_killed_conversion_left_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "_convert", _convert_slowly)
    monkeypatch.setattr(embedded, "wheel_file", Path)
    folder = embedded.embedded_folder()
    left = folder.with_suffix(".unfinished")
    folder.rename(left)
    (left / "last").unlink()
    assert _made(embedded.embedded_folder()) == ["first", "last"]


def test_tiny_is_the_same_for_the_same_seed() -> None:
    first, again, other = load_tiny(seed=3), load_tiny(seed=3), load_tiny(seed=4)
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:7"}, "target.device: expected one of auto, cpu"),
        ({"device": "toaster"}, "got 'toaster'; use device=auto"),
        ({"dtype": "float99"}, "target.dtype: expected float32, bfloat16, float16, float64 or auto, got 'float99'"),
        (
            {"kernel": "magic"},
            "target.kernel: expected one of auto, aten_flash, tree_flash, flash_attn, dense, got 'magic'",
        ),
    ],
)
def test_devices_dtypes_and_kernels_that_cannot_be_had(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        load("tiny", **options)
    assert message in str(error.value)


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "nowhere"))
    assert "target.name: expected the hub id or the folder of a causal language model" in str(error.value)
    assert "nowhere" in str(error.value)


def test_a_model_saved_to_a_folder_loads_and_generates_the_same(tmp_path: Path, tiny: TargetModel) -> None:
    tiny.model.save_pretrained(tmp_path)
    assert tiny.tokenizer is not None
    tiny.tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    logits = [t.prefill(t.new_cache(1, 4), [[1, 2, 3]]).logits for t in (tiny, loaded)]
    assert torch.equal(*logits)
    assert loaded.eos == tiny.eos
    assert shared_tokens(tiny, loaded).ids is None


def test_a_draft_model_with_other_tokens_is_refused(tiny: TargetModel) -> None:
    other = load_tiny()
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["extra"])
    other.tokenizer = tokenizer
    with pytest.raises(InputError) as error:
        DraftModel(other, [1]).start(Session(tiny, [[1]], SamplingParams(), 8))
    assert str(error.value) == (
        "drafter.model: expected the tokens of the target tiny (id 258 is None), got tiny, where id 258 is 'extra' "
        "(differing ids: 1); choose a draft model with the same tokenizer, "
        "or ignore what differs: drafter.vocabulary=shared"
    )
