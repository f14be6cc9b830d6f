"""Every file that a later run reads, cut at three places: it is made again, or refused in one line; never a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from specdec.files.home import cache_folder
from tests.faults.conftest import Whole
from tests.faults.processes import run
from tests.faults.scenarios import SCENARIOS

CUTS = (0.0, 0.5, 0.99)
CHECKPOINT = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "figures.json")


def cut(file: Path, part: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])


@pytest.mark.fault("cached file cut")
@pytest.mark.parametrize("part", CUTS)
def test_kernels_are_compiled_again(part: float, inputs: Path, folder: Path) -> None:
    home = folder.parent / "home"
    (home / "kernels").mkdir(parents=True)
    for library in (cache_folder() / "kernels").glob("*-*"):
        if library.is_dir():
            shutil.copytree(library, home / "kernels" / library.name)
    found = list((home / "kernels").glob("decoder-*/library.so"))  # of this version, and of others that ran here
    for library in found:
        cut(library, part)
    sizes = [library.stat().st_size for library in found]
    done = run("bench", SCENARIOS["bench"].arguments(folder, inputs), folder, environment={"SPECDEC_HOME": str(home)})
    assert done.status == 0, done.err
    assert any(library.stat().st_size > size for library, size in zip(found, sizes, strict=True))


@pytest.mark.fault("cached file cut")
@pytest.mark.parametrize("part", CUTS)
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    name: str, part: float, whole: Callable[[str], Whole], inputs: Path, folder: Path
) -> None:
    scenario = SCENARIOS["train"]
    arguments = scenario.arguments(folder, inputs)
    shutil.copytree(whole("train").folder / "run", folder / "run")
    newest = max((folder / "run" / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    cut(newest / name, part)
    done = run("train", arguments, folder)
    assert done.status == 0, done.err
    assert f"{newest.name} is damaged and left out" in done.err
    assert scenario.result(folder) == whole("train").result


@pytest.mark.fault("cached file cut")
@pytest.mark.parametrize("part", CUTS)
@pytest.mark.parametrize("name", ["shard-0.tokens", "shard-0.jsonl", "shard-0.hidden", "index.json"])
def test_text_that_was_cut_is_made_again_or_refused(name: str, part: float, inputs: Path, folder: Path) -> None:
    scenario = SCENARIOS["self_distill"]
    shutil.copytree(inputs / "text", folder / "text")
    cut(folder / "text" / name, part)
    done = run("self_distill", scenario.arguments(folder, inputs), folder)
    if done.status == 0:
        assert scenario.result(folder) == scenario.result(inputs)
    else:
        assert done.status == 2, done.err
        assert str(folder / "text") in done.error


@pytest.mark.fault("cached file cut")
@pytest.mark.parametrize("part", CUTS)
def test_a_trace_that_was_cut_is_refused(part: float, inputs: Path, folder: Path) -> None:
    shutil.copytree(inputs / "recorded", folder / "recorded")
    cut(folder / "recorded" / "trace.npz", part)
    done = run("simulate", [f"hydra.run.dir={folder}/run", f"run={folder}/recorded"], folder)
    assert done.status == 2, done.err
    assert "trace.npz" in done.error
