"""`python -m experiments.roofline`: its files, its tables, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import roofline


def test_a_kept_config_needs_no_hub(call: Callable[..., tuple], tmp_path: Path) -> None:
    status, _, out = call(roofline.main, "target=llama2_7b", "nodes=[64]", "batches=[4,256]", "prefill=[512]")
    assert status == 0
    assert "bound by memory below 153 operations per byte" in out
    assert "256 rows do not fit" in out
    data = json.loads((tmp_path / "roofline.json").read_text("utf-8"))
    names = [point["point"] for point in data["points"]]
    assert names == ["decode", "verify 64", "decode, batch 4", "decode, batch 256", "prompt of 512"]
    decode, verify, *_, prompt = data["points"]
    assert decode["bound"] == "memory"
    assert prompt["bound"] == "compute"
    assert 1 < verify["ms"] / decode["ms"] < 1.05
    assert verify["flops_per_byte"] > 50 * decode["flops_per_byte"]
    assert data["free_gigabytes"] == pytest.approx(66.5, abs=0.1)
    assert {"command", "commit", "machine"} <= set(data["provenance"])
    assert "roof" in (tmp_path / "roofline.html").read_text("utf-8")


def test_the_embedded_model_on_a_measured_machine(call: Callable[..., tuple], tmp_path: Path, measured: Path) -> None:
    status, _, out = call(roofline.main, "target=tiny", "hardware=this", f"hardware.file={measured}", "nodes=[8]")
    assert status == 0
    assert "tiny on a CPU, float32" in out  # computed in what was measured


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hardware=a100"], "error: hardware: expected one of a100_80g, "),
        (["hardware=a100"], "got 'a100'; did you mean a100_80g?"),
        (["hardware=this"], "hardware.file: expected a value, got none; pass hardware.file=..."),
        (["+hardware.gigabyte=80"], "hardware: expected one of name, teraflops, "),
        (["hardware.gigabytes=-80"], "A100 80 GB SXM: gigabytes: expected a positive number, got -80"),
        (["target=hf", "target.name=llama2_7"], "error: target: expected one of"),
        (
            ["devices=3"],
            "devices: expected a number that 32 query and 8 KV heads of llama3_8b can be split over, got 3",
        ),
        (["precision.weights=int3"], "precision.weights: expected one of"),
        (["reach.memory=0"], "reach.memory: expected a number > 0, got 0"),
        (["nodes=[0]"], "nodes[0]: expected an integer >= 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_line(
    call: Callable[..., tuple], tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, _, out = call(roofline.main, "target=llama3_8b", *overrides)
    assert status == 2
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "roofline.json").exists()
