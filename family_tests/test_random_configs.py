"""As `tests/specdec/model/test_random_configs.py`, with every family and more configs, other ones every time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.random_configs import FAMILIES, random_configs, wrong_texts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_configs_of_a_family_give_the_text_of_generate(family: str, data: st.DataObject) -> None:
    config = data.draw(random_configs(family))
    assert wrong_texts(config) == []
