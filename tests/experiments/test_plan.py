"""`python -m experiments.plan`: its files, its tables, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import plan

SMALL = ["target=llama2_7b", "batches=[1,32,512]", "contexts=[512,2048,8192]", "nodes=16"]


def test_a_plan_leaves_its_figures_and_a_plot(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, out = call(plan.main, *SMALL, "draft.model=llama_68m", "most_ms=30")
    assert status == 0
    assert "left out: contexts of 8192, longer than the window of 4096 tokens" in out
    assert "predictions: acceptances are taken as given" in out
    data = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    points = {(p["batch"], p["context"]): p for p in data["points"]}
    assert set(points) == {(1, 512), (32, 512), (1, 2048), (32, 2048)}  # 512 rows do not fit
    alone, many = points[1, 512], points[32, 512]
    assert alone["speedup"] > many["speedup"] > 1
    assert alone["nodes"] == sum(alone["levels"]) == len(alone["paths"]) > many["nodes"]
    assert alone["speedup"] == pytest.approx(alone["tokens_per_step"] * alone["plain_step_ms"] / alone["step_ms"])
    assert data["pays_up_to_batch"] == {"512": 32, "2048": 32}
    assert "32, then memory" in out
    (short, _) = data["service_level"]
    assert short["batch"] == 32
    assert short["tokens_per_second_per_device"] > short["plain_tokens_per_second_per_device"]
    assert "behind 512 tokens" in (tmp_path / "plan.html").read_text("utf-8")


def test_where_nothing_pays_nothing_is_drafted(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, out = call(plan.main, *SMALL, "rates=[[0.01]]", "draft.heads=1e9")
    assert status == 0
    assert "nowhere" in out
    assert {p["nodes"] for p in json.loads((tmp_path / "plan.json").read_text("utf-8"))["points"]} == {0}


def test_measured_acceptances(call: Callable[..., tuple], tmp_path: Path) -> None:
    """A run with two children under the root, one under the first; right in 3, 1 of 5 steps, and 2 of 3."""
    run = tmp_path / "run"
    run.mkdir()
    paths = [[0, 1, 3], [0, 1, 3], [0, 1], [0, 2], [0]]

    def steps(count: int) -> None:
        lines = [
            {"prompt": "a", "category": "b", "turn": 0, "repeat": 0, "row": 0, "step": i, "live": 1, "nodes": 3,
             "offered": 2, "accepted": len(path) - 1, "emitted": len(path), "path": path, "tokens": [0] * len(path),
             "ms": {}, "parents": [-1, 0, 0, 1]}
            for i, path in enumerate(paths * count)
        ]  # fmt: skip
        (run / "steps.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")

    steps(40)
    status, _, out = call(plan.main, *SMALL, f"measured={run}")
    assert status == 0, out
    data = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert [pytest.approx(rates) for rates in data["acceptance"]] == [[3 / 5, 1 / 5], [2 / 3]]
    assert max(p["tokens_per_step"] for p in data["points"]) == pytest.approx(1 + 4 / 5 * (1 + 2 / 3))
    steps(10)
    status, _, out = call(plan.main, *SMALL, f"measured={run}")
    assert status == 2
    assert "acceptance statistics: expected at least 100 steps, got 50" in out


def test_a_measured_curve(call: Callable[..., tuple], tmp_path: Path, measured: Path) -> None:
    here = ["target=tiny", "hardware=this", f"hardware.file={measured}", f"profile={measured}", "nodes=3"]
    status, _, _ = call(plan.main, *here, "batches=[1,2]", "contexts=[64,96]")
    assert status == 0
    points = json.loads((tmp_path / "plan.json").read_text("utf-8"))["points"]
    assert points[0]["plain_step_ms"] == pytest.approx(10)  # as measured, whatever the roofline says
    status, _, out = call(plan.main, *here, "batches=[4]", "contexts=[64]")
    assert status == 2
    assert "batch of a forward: expected 1 to 2, as the profile measured, got 4" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target=llama2_70b"], "expected weights (138.0 GB) within 80 GB a device, got 58.0 GB too many on each"),
        (["batches=[4096]", "contexts=[2048]"], "cache of 4096 x 2,048 tokens"),
        (["contexts=[8192]"], "contexts: expected one within the model's window of 4,096 tokens, got [8192]"),
        (["draft.model=llama_68m", "draft.heads=1e8"], "draft: expected a model or heads, got both"),
        (["draft.model=llama_86m"], "did you mean llama_68m?"),
        (["measured=nowhere.yaml"], "measured: expected the folder of a run, or tree.yaml of experiments.build_tree"),
        (["rates=[[0.9,0.2]]"], "acceptance at depth 1: expected probabilities of siblings"),
        (["profile=nowhere"], "profile: expected a profile.json of experiments.profile_target"),
    ],
)
def test_bad_input_is_one_clear_line(
    call: Callable[..., tuple], tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, _, out = call(plan.main, *SMALL, *overrides)
    assert status == 2
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "plan.json").exists()
