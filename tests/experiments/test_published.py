"""Published figures against the cost model: no limit is beaten, and two fitted numbers say the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from experiments import published


def test_no_published_forward_beats_the_limit_and_two_numbers_explain_the_rest(
    call: Callable[..., tuple], tmp_path: Path
) -> None:
    status, _, _ = call(published.main)
    assert status == 0
    data = json.loads((tmp_path / "published.json").read_text("utf-8"))
    assert all(row["limit_ms"] < row["published_ms"] for row in data["decoding"])
    whole = [row["fitted_ms"] / row["published_ms"] for row in data["decoding"] if row["weights"] == "bfloat16"]
    assert len(whole) == 10
    assert all(0.88 < ratio < 1.14 for ratio in whole)
    assert all(row["predicted"] > row["speedup"] > 1 for row in data["speculation"])
