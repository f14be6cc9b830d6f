"""Wrong options of every entry point: one line that names the option, status 2, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments import (
    bench,
    build_tree,
    compare_acceptance,
    convert_heads,
    plan,
    profile_target,
    published,
    ratios,
    roofline,
    self_distill,
    simulate,
    train,
)
from specdec.errors import InputError
from specdec.options import Count, Natural, NonNegative, Seed, Share, conform
from tests.support.commands import command

NO_NUMBER = ("true", "many", "[1]", "{a: 1}", "null", "nan", "inf", "-inf")
COUNT = (*NO_NUMBER, "0", "-1", "1.5", "1e30", "99999999999999999999")
WHOLE = (*NO_NUMBER, "-1", "0.5")
NUMBER = NO_NUMBER
SWITCH = ("1", "0", "maybe", "null", "[true]")
TEXT = ("''", "'  '", "true", "[a]", "3.5")
COUNTS = ("7", "[true]", "[1.5]", "[many]", "[nan]", "null", "[0]")

OPTIONS: list[tuple[Any, list[str], dict[str, tuple[str, ...]]]] = [
    (
        bench.main,
        ["target=tiny", "tracker=none"],
        {
            "seed": (*WHOLE, "99999999999999999999"),
            "repeats": COUNT,
            "report": SWITCH,
            "record": SWITCH,
            "record_ranks": COUNT,
            "generation.max_new_tokens": COUNT,
            "generation.batch_size": COUNT,
            "generation.temperature": (*NUMBER, "-1"),
            "generation.top_k": WHOLE,
            "generation.top_p": (*NUMBER, "0", "1.5"),
            "generation.repetition_penalty": (*NUMBER, "0"),
            "generation.stop": ("text", "[1]", "{a: 1}"),
            "tree": ("true", "7", "''", "wide"),
            "drafter.depth": NO_NUMBER[:6],
            "drafter.nodes": ("true", "many", "nan"),
            "prompts.limit": ("true", "many", "1.5", "nan"),
            "target.device": ("''", "true", "3"),
            "reference.methods": ("true", "7", "null"),
            "+foo": ("1",),
            "+generation.foo": ("1",),
            "+drafter.foo": ("1",),
            "+prompts.foo": ("1",),
            "+acceptance.foo": ("1",),
            "+verifier.foo": ("1",),
            "+tracker.foo": ("1",),
            "+target.foo": ("1",),
            "+reference.foo": ("1",),
        },
    ),
    (
        build_tree.main,
        ["target=tiny"],
        {"positions": COUNT, "nodes": COUNT, "candidates": COUNT, "assume": TEXT, "data": TEXT},
    ),
    (
        compare_acceptance.main,
        ["target=tiny"],
        {"temperatures": ("[]", "true", "[nan]", "[-1]", "[true]"), "draws": COUNT, "trees": ("true", "[a]")},
    ),
    (convert_heads.main, ["heads=x", "output=y"], {"heads": TEXT, "output": TEXT, "to": ("true", "''", "x")}),
    (
        compare_acceptance.main,
        ["synthetic=true"],
        {
            "study.widths": ("[]", *COUNTS),
            "study.vocab": (*COUNT, "1", "1000000"),
            "study.cases": (*COUNT, "1000000000"),
            "study.distances": ("[]", "[nan]", "[2]", "[-0.5]", "true"),
            "study.sharpness": (*NUMBER, "-1"),
            "study.seed": WHOLE,
            "study.rules": ("[]", "[with_replacement]", "[with_replacement/../drafter/ngram]", "true"),
        },
    ),
    (
        plan.main,
        [],
        {
            "nodes": COUNT,
            "depth": (*COUNT, "1000000000"),
            "batches": COUNTS,
            "contexts": COUNTS[:-1],
            "rates": ("[[nan]]", "[[2]]", "[0.5]", "true"),
            "worth": (*NUMBER, "-1"),
            "draft.heads": ("nan", "true", "0"),
            "reach.memory": (*NUMBER, "0"),
            "devices": COUNT,
            "+foo": ("1",),
            "+draft.foo": ("1",),
            "+hardware.foo": ("1",),
        },
    ),
    (roofline.main, [], {"context": WHOLE, "nodes": COUNTS, "batches": COUNTS, "prefill": COUNTS, "devices": COUNT}),
    (published.main, [], {"context": WHOLE, "fitted.memory": (*NUMBER, "0"), "decoding": ("true", "[1]")}),
    (
        profile_target.main,
        ["target=tiny"],
        {"rounds": COUNT, "buffer_mib": COUNT, "matrix": COUNT, "seed": WHOLE, "base.tokens": COUNT[:5]},
    ),
    (
        simulate.main,
        ["run=x"],
        {"run": TEXT, "tree": ("true", "1.5", "null"), "nodes": COUNT, "temperature": ("nan", "true", "-1")},
    ),
    (
        ratios.main,
        ["target=tiny"],
        {
            "batch.sizes": COUNTS,
            "batch.rounds": COUNT,
            "forward.verify": COUNTS,
            "tolerance": (*NUMBER, "-1"),
            "repeats": COUNT,
        },
    ),
    (
        self_distill.main,
        ["target=tiny", "folder=x"],
        {
            "folder": TEXT,
            "slots": COUNT,
            "seed": WHOLE,
            "answers.samples": COUNT,
            "answers.temperatures": ("true", "[nan]", "[-1]", "[true]"),
            "answers.longest_prompt": COUNT,
            "self_written.count": WHOLE,
            "passages.longest": COUNT,
            "+answers.foo": ("1",),
        },
    ),
    (
        train.main,
        ["target=tiny", "drafter=medusa", "data=x", "folder=y", "tracker=none"],
        {
            "data": TEXT,
            "folder": TEXT,
            "keep": COUNT,
            "training.epochs": (*NUMBER, "0"),
            "training.batch_size": COUNT[:11],
            "training.learning_rate": (*NUMBER, "0"),
            "training.seed": WHOLE[:8],
            "reports.log_every": COUNT[:11],
            "measure.prompts": WHOLE,
            "recipe.heads": ("true", "nan", "many"),
            "+training.foo": ("1",),
            "+recipe.foo": ("1",),
        },
    ),
    (
        train.main,
        ["drafter=draft_model", "target=tiny", "data=x", "folder=y", "tracker=none"],
        {"keep": COUNT[:6], "recipe.depth": ("true", "nan")},
    ),
]
# the first and the last two of each here, through Hydra; all of them below, against the annotation alone
ROWS = [(main, base, o, (bad[0], *bad[1:][-2:])) for main, base, options in OPTIONS for o, bad in options.items()]


@pytest.mark.parametrize(("main", "base", "option", "bad"), ROWS, ids=[f"{r[0].__module__[12:]}-{r[2]}" for r in ROWS])
def test_a_wrong_value_is_one_line(
    main: Callable[[], None],
    base: list[str],
    option: str,
    bad: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    call = command(main, tmp_path / "run", monkeypatch, capsys)
    kept = [override for override in base if not override.startswith(f"{option}=")]
    for value in bad:
        done = call(*kept, f"{option}={value}")
        line = done.err.strip()
        assert done.status == 2, (value, line)
        assert line.startswith("error: "), (value, line)
        assert "\n" not in line, (value, line)
        assert option.lstrip("+").split(".")[-1] in line, (value, line)
        assert "expected" in line, (value, line)
    assert not [file for file in tmp_path.rglob("*.json*") if file.name != ".claim.json"]


def test_there_are_many() -> None:
    assert sum(len(bad) for _, _, _, bad in ROWS) >= 200


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Count, COUNT),
        (Natural, WHOLE),
        (Seed, WHOLE),
        (NonNegative, NUMBER),
        (bool, SWITCH),
        (str, TEXT),
        (list[Count], COUNTS),
    ],
    ids=str,
)
def test_a_wrong_value_of_each_kind(kind: Any, bad: tuple[str, ...]) -> None:
    for text in bad:
        value = OverridesParser.create().parse_override(f"option={text}").value()
        with pytest.raises(InputError, match=r"option.*: expected .*, got .*; "):
            conform(value, kind, "option")


@dataclass
class Inner:
    shares: list[Share] = field(default_factory=list)


@dataclass
class Outer:
    inner: Inner
    names: dict[str, Count] = field(default_factory=dict)
    text: str | None = None


def test_a_dataclass_is_filled() -> None:
    made = conform({"inner": {"shares": [0, 0.5]}, "names": {"a": 1}, "text": None}, Outer, "outer")
    assert made == Outer(Inner([0.0, 0.5]), {"a": 1})


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({}, "outer.inner: expected a value, got none; pass outer.inner=..."),
        ({"inner": 3}, "outer.inner: expected options by name, got 3; change it"),
        ({"inner": {"share": []}}, "outer.inner: expected an option that exists (shares), got 'share'; did you mean "),
        ({"inner": {"shares": [2]}}, "outer.inner.shares[0]: expected a number <= 1, got 2; change it"),
        ({"inner": {}, "names": {"a": 0}}, "outer.names.a: expected an integer >= 1, got 0; change it"),
        ({"inner": {}, "text": ""}, "outer.text: expected text, got ''; write something, or null where that is all"),
        ({"inner": {}, "text": True}, "outer.text: expected text, got true; change it"),
    ],
)
def test_the_line_says_where(value: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        conform(value, Outer, "outer")
    assert str(caught.value).startswith(line)
