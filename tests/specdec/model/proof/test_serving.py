"""The code that serves each layer is observed, not derived."""

from __future__ import annotations

import warnings

import pytest

from specdec.model.load import load_tiny
from specdec.model.proof.serving import served
from specdec.model.target import TargetModel
from tests.support.families import build


def layers(family: str, **options: str) -> list[tuple[str, str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TargetModel(build(family), name=family, **options)  # type: ignore[arg-type]
    found = served(target)
    assert [serving.layer for serving in found] == list(range(target.depth))
    target.prefill(target.new_cache(1, 8), [[1, 2]])  # as before
    return [(serving.attention, serving.products, serving.feature) for serving in found]


def test_flash_serves_a_model_without_features() -> None:
    assert layers("mixtral", runtime="stock") == [("aten_flash", "PyTorch", "")] * 3
    assert layers("mixtral") == [("aten_flash", "few-row kernels", "")] * 3
    assert layers("mixtral", kernel="dense", runtime="stock") == [("dense", "PyTorch", "")] * 3


def test_features_are_named() -> None:
    assert {feature for _, _, feature in layers("gpt_oss", runtime="stock")} == {"attention sinks"}
    assert {feature for _, _, feature in layers("gemma2", runtime="stock")} == {"a soft cap"}


@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_fused_layers_are_one_call(weights: str) -> None:
    found = served(load_tiny(device="cpu", storage=weights))
    assert {serving.attention for serving in found} == {"fused"}
    assert {serving.products for serving in found} == {
        "few-row kernels" if weights == "stored" else "few-row kernels, weights in int8"
    }
