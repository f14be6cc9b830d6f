"""Reading runs back: whole ones, growing ones, broken ones, old ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.runs.read import Run, TextKey, find_runs
from specdec.runs.summary import Summary
from tests.support.runs_on_disk import add_text, begin, finished, training


def read(folder: Path) -> Run:
    run = Run(folder)
    run.refresh()
    return run


def test_a_whole_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    summary = finished(tmp_path, options={"seed": 3, "drafter": {"depth": 7}})
    run = read(tmp_path)
    assert run.figures == Summary.read(json.loads(json.dumps(summary)))[0]
    of_steps = StepMetrics.of(run.steps).as_dict()
    assert of_steps.pop("phase_ms") == pytest.approx(summary["phase_ms"])  # sums, in another order
    assert {name: summary[name] for name in of_steps} == of_steps
    assert run.options == {"seed": 3, "drafter.depth": 7}
    assert (run.status, run.names, run.notes) == ("finished", {"target": "tiny", "drafter": "ngram"}, [])
    assert set(run.texts) == {TextKey(f"q{n}", ("math", "<b>bold</b>")[n % 2], 0, 0) for n in range(4)}
    assert run.command.startswith("python ")
    assert len(run.commit.split()[0]) == 12


def test_a_run_under_way_grows_and_its_figures_are_those_of_its_steps(tmp_path: Path) -> None:
    log = begin(tmp_path)
    run = read(tmp_path)
    assert not run.refresh()
    first = add_text(log, 0)
    assert run.refresh()
    assert run.figures.tokens_per_step == StepMetrics.of(first).tokens_per_step
    second = add_text(log, 1)
    assert run.refresh()
    assert run.figures.steps == len(first) + len(second)
    assert set(run.figures.by_category) == {"math", "<b>bold</b>"}
    assert "the run is under way" in run.notes[0]
    log.stop("interrupted")
    assert run.refresh()
    assert "the run was interrupted" in run.notes[0]
    begin(tmp_path).stop("failed")  # another run began in its folder
    assert run.refresh()
    assert not run.steps


def test_a_killed_run_is_not_under_way_for_ever(tmp_path: Path) -> None:
    log = begin(tmp_path / "run")
    add_text(log, 0)
    run = read(tmp_path / "run")
    assert (run.status, run.notes[0][:20]) == ("running", "the run is under way")
    shutil.copytree(tmp_path / "run", tmp_path / "killed")  # the same files, and nobody holds their lock
    run = read(tmp_path / "killed")
    assert (run.status, run.notes[0][:18]) == ("killed", "the run was killed")
    log.stop("failed")


def test_half_a_last_line_is_left_out_and_named_until_it_is_whole(tmp_path: Path) -> None:
    finished(tmp_path)
    file = tmp_path / "steps.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    run = read(tmp_path)
    assert len(run.steps) == 47
    assert run.notes == ["the last line of steps.jsonl is cut off"]
    file.write_bytes(whole)
    assert run.refresh()
    assert (len(run.steps), run.notes) == (48, [])
    file.write_bytes(whole[:-1])  # only the newline is missing
    assert len(read(tmp_path).steps) == 48


def test_lines_that_hold_no_record_are_counted(tmp_path: Path) -> None:
    finished(tmp_path)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('nonsense\n[1]\n{"row": 0}\n')
    run = read(tmp_path)
    assert len(run.steps) == 48
    assert run.notes == ["3 lines of steps.jsonl hold no record"]


def test_an_unreadable_summary_is_named_and_the_steps_speak(tmp_path: Path) -> None:
    summary = finished(tmp_path)
    (tmp_path / "summary.json").write_text("{", "utf-8")
    run = read(tmp_path)
    assert run.notes == ["summary.json cannot be read"]
    assert run.figures.tokens_per_step == summary["tokens_per_step"]


def test_a_run_of_an_older_version_says_what_it_lacks(tmp_path: Path) -> None:
    finished(tmp_path)
    for name, key in (("steps.jsonl", "parents"), ("generations.jsonl", "pieces")):
        lines = [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]
        for line in lines:
            del line[key]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    del summary["emitted_histogram"]
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    run = read(tmp_path)
    assert sum(run.figures.emitted_histogram) == 48
    assert [note.partition(" that ")[2] for note in run.notes] == [
        "did not record its trees", "did not record the text of each token",
    ]  # fmt: skip


def test_training_runs_are_found_and_runs_set_aside_are_not(tmp_path: Path) -> None:
    finished(tmp_path / "sweep" / "0")
    begin(tmp_path / "sweep" / "0").stop("failed")
    training(tmp_path / "train")
    (tmp_path / "train" / "checkpoints").mkdir()
    assert [run.folder.name for run in find_runs([tmp_path])] == ["0", "train"]
    run = read(tmp_path / "train")
    assert run.trains
    assert [line["step"] for line in run.training] == [0, 5, 5, 10, 10, 15, 15, 20, 20]


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder with runs \(steps.jsonl or train.jsonl\), got none in"):
        find_runs([tmp_path])
    with pytest.raises(InputError, match=r"expected a folder with runs, got '.*nowhere'; check the path"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize("name", ["steps.jsonl", "generations.jsonl", "summary.json", "provenance.json"])
def test_a_file_that_becomes_a_link_is_not_followed(name: str, tmp_path: Path) -> None:
    finished(tmp_path / "run")
    finished(tmp_path / "secret")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).symlink_to(tmp_path / "secret" / name)
    run = read(tmp_path / "run")
    assert f"{name} cannot be read" in run.notes
    assert {"steps.jsonl": run.steps, "generations.jsonl": run.generations, "summary.json": run.head,
            "provenance.json": run.provenance}[name] in ([], {}, Summary())  # fmt: skip


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    finished(tmp_path / "run", options={"seed": 3})
    assert read(tmp_path / "run").options == {"seed": 3}
    (tmp_path / "run" / ".hydra").rename(tmp_path / "secret")
    (tmp_path / "run" / ".hydra").symlink_to(tmp_path / "secret")
    assert read(tmp_path / "run").options == {}
