"""Targets with random configs give the greedy text of `model.generate`: alone, in a ragged batch and drafted for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.random_configs import RandomConfig, random_configs, wrong_texts


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(random_configs())
def test_random_configs_give_the_text_of_generate(config: RandomConfig) -> None:
    assert wrong_texts(config) == []
