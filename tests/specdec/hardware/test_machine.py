"""Machines from figures and from profiles, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from specdec.errors import InputError
from specdec.hardware import Machine
from tests.specdec.hardware.made import A100
from tests.support.configs import CONF, group

FIGURES: dict[str, Any] = {
    "name": "made",
    "teraflops": {"bfloat16": 10},
    "gigabytes_per_second": 100,
    "gigabytes": 8,
    "links": {"pcie": 32},
}


@pytest.mark.parametrize("choice", [name for name in group("hardware") if name != "this"])
def test_every_datasheet_is_a_machine_and_names_its_source(choice: str) -> None:
    file = CONF / "hardware" / f"{choice}.yaml"
    machine = instantiate(OmegaConf.load(file))
    assert isinstance(machine, Machine)
    assert machine.flops_per_second("bfloat16") > machine.flops_per_second("float32")
    assert "datasheet" in file.read_text("utf-8") or "whitepaper" in file.read_text("utf-8")


def test_an_a100_does_153_operations_per_byte() -> None:
    machine = instantiate(OmegaConf.load(CONF / "hardware" / "a100_80g.yaml"))
    assert machine.balance("bfloat16") == pytest.approx(153, abs=0.1)
    assert machine.link_bytes_per_second() == 300e9
    assert machine.link_bytes_per_second("pcie") == 32e9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gigabytes": None}, "hardware.gigabytes: expected a number, got none; take it from the datasheet"),
        ({"gigabytes": -80}, "made: gigabytes: expected a positive number, got -80"),
        ({"gigabytes_per_second": "fast"}, "hardware.gigabytes_per_second: expected a number, got 'fast'"),
        ({"teraflops": {}}, "made: teraflops: expected figures by dtype"),
        ({"teraflops": 312}, "hardware.teraflops: expected figures by dtype, got 312"),
        ({"teraflops": {"bfloat": 1}}, "got 'bfloat'; did you mean bfloat16?"),
        ({"teraflops": {"bfloat16": 0}}, "made: teraflops.bfloat16: expected a positive number, got 0"),
        ({"links": {"nvlink": float("inf")}}, "made: links.nvlink: expected a positive number, got inf"),
        ({"gigabyte_per_second": 1}, "got 'gigabyte_per_second'; did you mean gigabytes_per_second?"),
    ],
)
def test_wrong_figures(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="expected") as error:
        Machine.of({**FIGURES, **changed})
    assert message in str(error.value)


def test_what_it_does_not_have() -> None:
    with pytest.raises(InputError, match="did you mean nvlink"):
        A100.link_bytes_per_second("nvlnk")
    with pytest.raises(InputError, match="expected one of bfloat16, int8, float32, got 'float8'"):
        A100.flops_per_second("float8")
    with pytest.raises(InputError, match="expected a link to a second device, got none; use one device"):
        Machine.of({**FIGURES, "links": {}}).link_bytes_per_second()


def test_this_machine_comes_from_a_profile(tmp_path: Path) -> None:
    profile = {
        "target": "tiny",
        "dtype": "float32",
        "ceilings": {"gb_per_second": 27.0, "gflop_per_second": 174.0},
        "points": [],
        "provenance": {"machine": {"cpu": "a CPU", "gpu": [], "memory_gib": 24.0}},
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile), "utf-8")
    machine = Machine.from_profile(tmp_path)  # the run folder will do
    assert machine.name == "a CPU"
    assert machine.flops_per_second("float32") == pytest.approx(174e9)
    assert machine.bytes_per_second == 27e9
    assert machine.bytes == pytest.approx(24 * 2**30)
    assert machine.links == {}


@pytest.mark.parametrize("text", ["", "[]", '{"target": "tiny"}'])
def test_what_is_no_profile(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"profile: expected .*; run python -m experiments.profile_target"):
        Machine.from_profile(file)
