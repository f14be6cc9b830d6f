"""No causal-LM family of transformers changes sides unnoticed, and each that works gives the text of `model.generate`.

Minutes, not seconds: run by `make test-families` and in CI, not by `make test`.
"""

from __future__ import annotations

import json

import pytest
import transformers

from experiments.families.family_check import WORKS, check_family
from experiments.families.tiny_models import causal_lm_types
from experiments.model_table import SIDES, TABLE

RECORDED: dict[str, str] = json.loads(SIDES.read_text("utf-8"))
LEAST = 95  # families that work


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", causal_lm_types())
def test_a_family_stays_on_its_side(model_type: str) -> None:
    finding = check_family(model_type)
    assert finding.status == RECORDED.get(model_type), (
        f"{finding.how}; python -m experiments.model_table writes it anew"
    )


def test_the_table_says_what_is_recorded() -> None:
    page = TABLE.read_text("utf-8")
    for model_type, status in RECORDED.items():
        assert f"| {model_type} | {status} |" in page
    assert sum(status == WORKS for status in RECORDED.values()) >= LEAST
