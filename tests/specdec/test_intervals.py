"""Ratios with intervals, on sums computed by hand."""

from __future__ import annotations

import pytest

from specdec.intervals import bootstrap_speedup


def test_speedup_is_the_ratio_of_totals_with_an_interval_around_it() -> None:
    ratio, interval = bootstrap_speedup([10, 30], [1, 2], [10, 30], [2, 6])
    assert ratio == pytest.approx((40 / 3) / (40 / 8))
    assert interval is not None
    assert interval == pytest.approx((2.0, 3.0))  # of two prompts with 2x and 3x, the extremes resample alone
    assert bootstrap_speedup([10], [1], [10], [2]) == (2.0, None)


def test_equal_methods_have_speedup_one() -> None:
    ratio, interval = bootstrap_speedup([5, 6, 7], [1, 2, 3], [5, 6, 7], [1, 2, 3])
    assert (ratio, interval) == (1.0, (1.0, 1.0))
