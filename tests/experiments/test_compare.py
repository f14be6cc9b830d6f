"""`python -m experiments.compare`: differences that are there are found, those that are not are not claimed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from experiments import compare as entry
from specdec.measure.comparison import Difference, compare
from specdec.metrics import StepRecord
from specdec.runs.read import Run, TextKey
from tests.support.runs_on_disk import begin, summary_of


def run(folder: Path, seed: int, *, faster: float = 1.0, longer: float = 0.0, prompts: int = 30, **options: Any) -> Run:
    """A run whose prompts are as hard as in every other; `seed` makes its noise, `text` its texts."""
    machine = options.get("machine", 1.0)
    noise, texts, log = (
        random.Random(seed),
        random.Random(options.get("text", seed)),
        begin(folder, target=options.get("target", "tiny")),
    )
    steps: list[StepRecord] = []
    for number in range(prompts):
        hard = random.Random(number).uniform(0.5, 2.0)
        where = {"prompt": f"q{number}", "category": "all", "turn": 0, "repeat": 0}
        of_text = []
        for step in range(1, 9):
            emitted = 2 if texts.random() < 0.5 + longer else 1
            path, ms = list(range(emitted)), {"draft": 1.0, "verify": 9.0, "accept": 0.0, "commit": 0.0}
            record = StepRecord(0, step, 1, 1, 1, emitted - 1, emitted, path, [7] * emitted, ms, [-1, 0])
            of_text.append(record)
        tokens = sum(record.emitted for record in of_text)
        seconds = {
            "speculative": hard * tokens * noise.uniform(0.98, 1.02) / faster / machine,
            "autoregressive": 2 * hard * tokens / machine,
        }
        log.steps(of_text, [where])
        identical = options.get("identical", True)
        asked = f"{options.get('asked', 'question')} {number}"
        text: dict[str, Any] = {**where, "prompt_text": asked, "text": "", "tokens": [7] * tokens}
        if "baseline" in options:
            text["baseline_tokens"] = options["baseline"]
            seconds["autoregressive"] = 2 * hard * options["baseline"] / machine
        log.generations([{**text, "identical": identical, "seconds": seconds}])
        steps += of_text
    log.finish(summary_of({"all": steps}, drafter="ngram", target=options.get("target", "tiny")))
    return Run(folder)


def by_name(first: list[Run], second: list[Run]) -> dict[str, Difference]:
    differences, _ = compare(first, second)
    return {difference.name: difference for difference in differences}


def test_a_difference_smaller_than_the_spread_over_prompts_is_found(tmp_path: Path) -> None:
    """Prompts differ by a factor of four, the runs by 5 %: pairing shows it."""
    found = by_name([run(tmp_path / "a", 1, text=0)], [run(tmp_path / "b", 2, text=0, faster=1.05)])["tokens/s"]
    assert found.ratio == pytest.approx(1.05, abs=0.01)
    assert found.interval is not None
    assert 1.03 < found.interval[0] < 1.05 < found.interval[1] < 1.07
    assert found.verdict == "the second is faster"
    assert by_name([run(tmp_path / "c", 2, faster=1.05)], [run(tmp_path / "d", 1)])["speedup"].verdict == (
        "the first is faster"
    )


def test_equal_groups_are_not_told_apart_more_often_than_stated(tmp_path: Path) -> None:
    """False alarms at 5 %: more than 5 of 20 have a chance of 3 in 10,000, and the seeds are fixed."""
    alarms = 0
    for trial in range(20):
        pair = [[run(tmp_path / f"{trial}-{side}", 100 * trial + side)] for side in (1, 2)]
        alarms += not by_name(*pair)["tokens per step"].verdict.startswith("no difference")
    assert alarms <= 5


def test_the_smallest_visible_difference_is_honest(tmp_path: Path) -> None:
    """A difference of three times it is found; one of a tenth of it is not claimed."""
    base = [run(tmp_path / "base", 1, text=0)]
    visible = by_name(base, [run(tmp_path / "same", 2, text=0)])["tokens/s"].visible
    assert visible is not None
    assert 1.001 < visible < 1.03
    large = run(tmp_path / "large", 3, text=0, faster=1 + 3 * (visible - 1))
    small = run(tmp_path / "small", 4, text=0, faster=1 + 0.1 * (visible - 1))
    assert by_name(base, [large])["tokens/s"].verdict == "the second is faster"
    assert "would have been, 80 times in 100" in by_name(base, [small])["tokens/s"].verdict


def test_more_seeds_make_the_interval_narrower(tmp_path: Path) -> None:
    def width(seeds: int) -> float:
        groups = [
            [run(tmp_path / f"{seeds}-{side}-{seed}", 10 * seed + side) for seed in range(seeds)] for side in (0, 1)
        ]
        interval = by_name(*groups)["tokens per step"].interval
        assert interval is not None
        return interval[1] - interval[0]

    assert width(6) < width(1)


def test_only_shared_prompts_count_and_unknown_figures_are_left_out(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", 1, prompts=5), run(tmp_path / "b", 1, prompts=3, identical=False)
    differences, prompts = compare([first], [second])
    assert prompts == 3
    assert [difference.name for difference in differences] == ["tokens per step", "acceptance rate", "tokens/s"]
    assert all(difference.ratio == pytest.approx(1) for difference in differences)


def test_one_prompt_makes_no_claim(tmp_path: Path) -> None:
    found = by_name([run(tmp_path / "a", 1, prompts=1)], [run(tmp_path / "b", 2, prompts=1, faster=3.0)])["tokens/s"]
    assert (found.interval, found.visible) == (None, None)
    assert found.verdict == "too few prompts to tell (1 of 6)"


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", 1)
    run(tmp_path / "b", 2, faster=1.5)
    entry.main([str(tmp_path / "a"), str(tmp_path / "b"), "--write", str(tmp_path / "found.json")])
    assert "the second is faster" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "found.json").read_text("utf-8"))["others"]
    assert found["prompts"] == 30
    assert {difference["name"] for difference in found["differences"]} >= {"tokens/s", "speedup"}


def test_a_worse_group_among_several_ends_the_command_with_a_status_if_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folders = [tmp_path / name for name in ("base", "same", "slower")]
    for folder, faster in zip(folders, (1.0, 1.0, 0.5), strict=True):
        run(folder, 1, faster=faster)
    entry.main([*map(str, folders)])
    assert capsys.readouterr().out.count("over") >= 2
    entry.main([*map(str, folders[:2]), "--fail-if-worse"])
    with pytest.raises(SystemExit) as end:
        entry.main([*map(str, folders), "--fail-if-worse"])
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"worse: {folders[2]}: tokens/s 0.5")
    assert str(folders[1]) not in err


def test_a_faster_machine_is_no_faster_drafter(tmp_path: Path) -> None:
    found = by_name([run(tmp_path / "a", 1, text=0)], [run(tmp_path / "b", 2, text=0, machine=1.2)])
    assert found["plain tokens/s"].verdict == "the second is faster, whatever drafts"
    assert found["tokens/s"].ratio == pytest.approx(1.2, rel=0.02)
    assert found["tokens/s"].verdict.startswith("no difference was seen")
    assert found["speedup"].verdict.startswith("no difference was seen")
    assert found["tokens per step"].verdict == "equal"
    both = by_name([run(tmp_path / "c", 1, text=0)], [run(tmp_path / "d", 2, text=0, machine=1.1, faster=1.5)])
    assert both["tokens/s"].verdict == "the second is faster"


def test_sampled_texts_have_a_speedup_too(tmp_path: Path) -> None:
    """Their baseline has another number of tokens, which newer runs note."""
    found = by_name(
        [run(tmp_path / "a", 1, identical=None, baseline=7)],
        [run(tmp_path / "b", 2, identical=None, baseline=7, faster=1.5)],
    )
    assert found["speedup"].verdict == "the second is faster"
    assert found["speedup"].ratio == pytest.approx(1.5, rel=0.1)
    assert "plain tokens/s" in found


def test_prompts_of_the_same_id_are_not_the_same_prompt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", 1, prompts=8)
    run(tmp_path / "b", 2, prompts=8, asked="other questions")
    with pytest.raises(SystemExit) as end:
        entry.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: folders: expected groups of runs over the same prompts, got no prompt that all of them answered; "
        "run all with the same prompts=... and prompts.limit\n"
    )


def test_what_is_left_out_and_what_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", 1, prompts=9)
    run(tmp_path / "b", 2, prompts=7, target="other")
    entry.main([str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "2 prompts that not all runs answered are left out." in out
    assert "These runs have different targets (tiny, other)" in out


def test_a_run_that_wrote_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", 1, prompts=7)
    begin(tmp_path / "b").stop("failed")
    with pytest.raises(SystemExit) as end:
        entry.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert end.value.code == 2
    assert "got a group without a finished text" in capsys.readouterr().err


def test_the_seeds_of_a_run_are_as_good_as_runs(tmp_path: Path) -> None:
    """One run under four seeds gives the figures and intervals of four runs."""
    apart = [run(tmp_path / f"{seed}", seed, prompts=8) for seed in range(4)]
    together = begin(tmp_path / "together")
    for seed, one in enumerate(apart):
        one.refresh()
        for generation in one.generations:
            key = TextKey(generation["prompt"], "all", 0, 0)
            where = {**{k: generation[k] for k in ("prompt", "category", "turn")}, "repeat": seed}
            together.steps(one.texts[key], [where])
            together.generations([{**generation, **where, "seed": seed}])
    together.finish(apart[0].head.as_dict())
    other = [run(tmp_path / "other", 9, prompts=8)]
    assert by_name(other, [Run(tmp_path / "together")]) == by_name(other, apart)


def test_few_prompts_make_no_claim(tmp_path: Path) -> None:
    found = by_name([run(tmp_path / "a", 1, prompts=5)], [run(tmp_path / "b", 2, prompts=5, faster=3.0)])["tokens/s"]
    assert found.interval is not None
    assert (found.visible, found.verdict) == (None, "too few prompts to tell (5 of 6)")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "a", 1, prompts=2)
    (tmp_path / "empty").mkdir()
    for other, message in (("empty", "folder: expected a folder with runs"), ("none", "check the path")):
        with pytest.raises(SystemExit) as end:
            entry.main([str(tmp_path / "a"), str(tmp_path / other)])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
