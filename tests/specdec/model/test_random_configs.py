"""Random configs of families that work: greedy text is that of `generate`, alone, in a ragged batch and drafted for.

A few fixed examples; `family_tests/test_random_configs.py` draws many others of every family.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec.errors import InputError
from specdec.model.cache import TreeCache
from tests.support.random_configs import RandomConfig, random_configs, wrong_texts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "deepseek_v3"])
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_configs_give_the_text_of_generate(family: str, data: st.DataObject) -> None:
    assert wrong_texts(data.draw(random_configs(family))) == []


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_cache_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the proof at the door; and by the texts, if nothing were proven there."""
    config = RandomConfig("llama", {}, 1)
    assert wrong_texts(config) == []
    monkeypatch.setattr(TreeCache, "keep", lambda cache, _path, counts: cache.advance(counts))
    with pytest.raises(InputError, match="expected forwards over trees that give what the stock model gives"):
        wrong_texts(config)
    monkeypatch.setattr("specdec.model.target.admitted", lambda *_: None)
    assert "tree" in wrong_texts(config)
