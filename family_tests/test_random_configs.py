"""As `tests/test_random_configs.py`, with many more configs, other ones every time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.random_configs import RandomConfig, random_configs, wrong_texts


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_configs())
def test_many_random_configs_give_the_text_of_generate(config: RandomConfig) -> None:
    assert wrong_texts(config) == []
