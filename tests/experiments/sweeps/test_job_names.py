"""Names of jobs: the differing options, as Hydra parses overrides, never cut."""

from __future__ import annotations

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.sweeps.job_names import names, numbers, parsed


def jobs(*overrides: str) -> dict[int, list[str]]:
    """The jobs of Hydra's own sweeper."""
    return dict(
        enumerate(BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([*overrides]), None)[0])
    )


NASTY = [
    (["x=1", "drafter=none,ngram"], ["drafter=none", "drafter=ngram"]),
    (["tree=[0,1],[[0],[0,1]]"], ["tree=[0,1]", "tree=[[0],[0,1]]"]),
    (["generation.stop=['a, b'],[]"], ["generation.stop=['a, b']", "generation.stop=[]"]),
    (["s='x,y','z=1, [b]'"], ["s='x,y'", "s='z=1, [b]'"]),
    (["s='it\\'s',\"two\""], ["s='it\\'s'", 's="two"']),
    (["s=a\\,b,c"], ["s=a\\,b", "s=c"]),
    (["k={a:1,b:[1,2]},{a:2,b:[]}"], ["k={a:1,b:[1,2]}", "k={a:2,b:[]}"]),
    (["+new.a=1,2", "~gone"], ["+new.a=1", "+new.a=2"]),
    (["n=range(1,4)"], ["n=1", "n=2", "n=3"]),
    (["p=$HOME/a.jsonl,/b c.jsonl"], ["p=$HOME/a.jsonl", "p=/b\\ c.jsonl"]),
    (["a=1,2", "s='[bold]','[/]'"], ["a=1, s='[bold]'", "a=1, s='[/]'", "a=2, s='[bold]'", "a=2, s='[/]'"]),
    (["s=" + "x" * 300 + "1," + "x" * 300 + "2"], ["s=" + "x" * 300 + "1", "s=" + "x" * 300 + "2"]),
    (["x=1"], ["x=1"]),
]


@pytest.mark.parametrize(("overrides", "expected"), NASTY, ids=lambda value: str(value)[:30])
def test_names_are_the_options_that_differ(overrides: list[str], expected: list[str]) -> None:
    assert list(names(jobs(*overrides)).values()) == expected


def test_equal_jobs_are_told_apart_by_their_numbers() -> None:
    assert names({0: ["a=1"], 1: ["a=1"], 7: ["a=1", "b=2"]}) == {0: "#0", 1: "#1", 7: "b=2"}
    assert names({0: [], 3: []}) == {0: "#0", 3: "#3"}


def test_options_that_only_some_jobs_have_tell_them_apart() -> None:
    assert names({0: ["a=1"], 1: ["b=[1,2]"]}) == {0: "a=1", 1: "b=[1,2]"}


def test_the_last_of_repeated_overrides_counts() -> None:
    assert parsed(["a=1", "b=2", "a=[3, 4]"]) == {"b": "2", "a": "[3,4]"}


def test_one_number_makes_an_axis() -> None:
    assert numbers(jobs("x=a", "n=1,2.5")) == ("n", {0: 1.0, 1: 2.5})
    assert numbers(jobs("n=1,2", "m=1,2")) is None
    assert numbers(jobs("n=1,two")) is None
    assert numbers({0: ["n=1"], 1: []}) is None
