"""`python -m experiments.profile_target`: its files, its table, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import profile_target

TINY = ["target=tiny", "target.device=cpu", "rounds=2", "buffer_mib=1", "matrix=16"]
SMALL = [
    *("axes.tokens=[1,4]", "axes.prefix=[0,9000]", "axes.batch=[1]"),
    *("grid.tokens=[1,2]", "grid.prefix=[64]", "grid.batch=[1,3]"),
]


def test_a_profile_leaves_its_figures_and_a_plot(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, out = call(profile_target.main, *TINY, *SMALL)
    assert status == 0
    assert "prefix 9000 is cut to 4092: the context window is 4096 tokens, 4 of them new" in out
    data = json.loads((tmp_path / "profile.json").read_text("utf-8"))
    assert {"command", "commit", "machine", "threads"} <= set(data["provenance"])
    assert data["ceilings"]["gb_per_second"] > 0
    points = {(p["tokens"], p["prefix"], p["batch"]) for p in data["points"]}
    sweeps, grid = {(1, 256, 1), (4, 256, 1), (1, 0, 1), (1, 4092, 1)}, {(n, 64, b) for n in (1, 2) for b in (1, 3)}
    assert points == sweeps | grid
    assert all(len(p["ms"]["rounds"]) == 2 for p in data["points"])
    assert "4,092" in out
    assert "this machine at best: reads" in out
    plot = (tmp_path / "profile.html").read_text("utf-8")
    assert "prefix 64, batch 3: limit" in plot


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["axes.tokens=[0]"], "error: tokens: expected an integer >= 1, got 0; raise it"),
        (["axes.tokens=[5000]"], "error: tokens: expected at most the context window, 4096"),
        (["axes.tokens=[many]"], "axes.tokens[0]: expected an integer, got 'many'"),
        (["axes.toknes=[1]"], "error: axes.toknes: expected an option that exists (tokens, prefix, batch)"),
        (["exit_layer=2"], "error: exit_layer: expected 1 to 1, fewer than the 2 layers of the target tiny, got 2"),
        (["rounds=0"], "error: rounds: expected an integer >= 1, got 0"),
        (["rounds=few"], "rounds: expected an integer, got 'few'"),
    ],
)
def test_bad_input_is_one_clear_line(
    call: Callable[..., tuple], tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, _, out = call(profile_target.main, *TINY, *SMALL, *overrides)
    assert status == 2
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "profile.json").exists()


def test_what_a_resumed_verification_takes_is_told_as_a_share(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, out = call(profile_target.main, *TINY, *SMALL, "exit_layer=1")
    assert status == 0
    assert "from layer 1 on" in out
    data = json.loads((tmp_path / "profile.json").read_text("utf-8"))
    assert data["exit_layer"] == 1
    assert all(point["resumed"][0] > 0 for point in data["points"])


def test_the_grid_can_be_left_out(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, _ = call(profile_target.main, *TINY, *SMALL, "grid.tokens=[]")
    assert status == 0
    assert len(json.loads((tmp_path / "profile.json").read_text("utf-8"))["points"]) == 4


def test_a_window_shorter_than_the_base_point_still_gives_a_table_and_a_plot(
    call: Callable[..., tuple], tmp_path: Path
) -> None:
    status, _, out = call(profile_target.main, *TINY, *SMALL, "base.prefix=5000", "grid.prefix=[6000]")
    assert status == 0
    assert all(f"prefix {prefix} is cut to 4092" in out for prefix in (5000, 6000, 9000))
    assert "prefix 4092, batch 3: limit" in (tmp_path / "profile.html").read_text("utf-8")
