"""Measured curves: between their points, outside of them, and where they fall."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from specdec.errors import InputError
from specdec.hardware import FREE, CostCurve, DraftCost, MeasuredCurve, Roofline
from tests.specdec.hardware.made import SLOW, dense, shape

GRID = {(n, p, b): 1e3 * (n + p / 100 + 10 * b) for n in (1, 4, 8) for p in (100, 300) for b in (1, 2)}


def profile(folder: Path, ms: Mapping[tuple[int, int, int], float]) -> Path:
    """Return the profile of points (tokens, prefix, batch)."""
    points = [{"tokens": n, "prefix": p, "batch": b, "ms": {"quartiles": [m, 2 * m]}} for (n, p, b), m in ms.items()]
    head = {"target": "tiny", "device": "cpu", "dtype": "float32", "ceilings": {}, "provenance": {}}
    file = folder / "profile.json"
    file.write_text(json.dumps({**head, "points": points}), "utf-8")
    return file


def test_it_is_linear_between_its_points_and_exact_on_them(tmp_path: Path) -> None:
    curve = MeasuredCurve(profile(tmp_path, GRID))
    assert curve.seconds(4, 2, 300) == pytest.approx(4 + 3 + 20)
    assert curve.seconds(6, 1, 150) == pytest.approx(6 + 1.5 + 10)
    assert isinstance(curve, CostCurve)


def test_points_beside_the_grid_are_left_out(tmp_path: Path) -> None:
    beside = {(1, 0, 1): 1.0, (1, 100, 16): 1.0, (1, 50, 1): 1e3, (8, 50, 1): 2e3}
    curve = MeasuredCurve(profile(tmp_path, {**GRID, **beside}))
    assert curve.seconds(1, 1, 100) == pytest.approx(12)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((9, 1, 100), "tokens of a forward: expected 1 to 8, as the profile measured, got 9"),
        ((1, 3, 100), "batch of a forward: expected 1 to 2, as the profile measured, got 3"),
        ((1, 1, 99), "prefix of a forward: expected 100 to 300, as the profile measured, got 99"),
    ],
)
def test_nothing_is_guessed_outside(tmp_path: Path, point: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        MeasuredCurve(profile(tmp_path, GRID)).seconds(*point)
    assert message in str(error.value)


def test_fewer_nodes_can_be_padded_to_more(tmp_path: Path) -> None:
    ms = {(1, 64, 1): 10.0, (2, 64, 1): 21.0, (4, 64, 1): 20.0, (8, 64, 1): 30.0}
    with pytest.warns(UserWarning, match="2 tokens take 5% longer than more do"):
        curve = MeasuredCurve(profile(tmp_path, ms))
    assert [curve.seconds(n, 1, 64) for n in (1, 2, 4, 8)] == pytest.approx([0.01, 0.02, 0.02, 0.03])


def test_noise_of_a_percent_is_not_worth_a_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = MeasuredCurve(profile(tmp_path, {(1, 64, 1): 10.1, (2, 64, 1): 10.0}))
    assert curve.seconds(1, 1, 64) == curve.seconds(2, 1, 64) == 0.01


def test_a_curve_that_falls_is_a_disturbed_measurement(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prefix 64, batch 1: expected a time that does not fall with more tokens"):
        MeasuredCurve(profile(tmp_path, {(1, 64, 1): 20.0, (2, 64, 1): 10.0}))


@pytest.mark.parametrize("ms", [{}, {(1, 64, 1): 1.0}, {(2, 64, 1): 1.0, (4, 64, 1): 1.0}])
def test_too_few_points(tmp_path: Path, ms: dict[tuple[int, int, int], float]) -> None:
    with pytest.raises(InputError, match="expected times of several numbers of tokens, 1 among them"):
        MeasuredCurve(profile(tmp_path, ms))


def test_a_draft_model_runs_once_a_depth_and_heads_once_a_step() -> None:
    model = Roofline(shape(dense()), SLOW)
    grown = DraftCost(level=model)
    assert grown.seconds([3, 6, 2]) == pytest.approx(model.seconds(1) + model.seconds(3) + model.seconds(6))
    assert DraftCost(once=model).seconds([3, 6, 2], 2, 7) == model.seconds(1, 2, 7)
    assert grown.seconds([]) == 0
    assert DraftCost(FREE, FREE).seconds([3]) == 0
