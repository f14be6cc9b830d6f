"""The worth of a drafter, and the number that a search gets."""

from __future__ import annotations

import pytest

from drafters.ngram import Ngram
from experiments.common.objective import check_objective, objective
from specdec.decoding.decoder import Decoder
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.intervals import bootstrap_speedup
from specdec.measure.worth import FIGURES, Sample, figures, samples
from specdec.model.target import TargetModel
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention


def test_samples_are_made_prompt_by_prompt(tiny: TargetModel) -> None:
    prompts = [[5, 6, 7, 5, 6], [9, 8, 9, 8], [1, 2]]
    decoder = Decoder(
        Ngram(4, 1, 2, 7, 1, 7), TreeAttention(tiny), Exact(), SamplingParams(), StopRule(12, frozenset())
    )
    made = samples(prompts, decoder)
    first = next(made)
    assert first.tokens == first.base_tokens == first.emitted + 1
    found = figures([first, *made])
    assert found["tokens_per_step"] >= 1.0
    for name in FIGURES:
        low, high = found[f"{name}_ci95"]
        assert low <= found[name] <= high


def test_figures_are_those_of_the_sums() -> None:
    data = [Sample(10, 5, 11, 1.0, 11, 2.0), Sample(30, 10, 31, 2.0, 31, 5.0)]
    found = figures(data)
    assert found["tokens_per_step"] == 40 / 15
    assert found["tokens_per_second"] == 42 / 3.0
    assert (found["speedup"], found["speedup_ci95"]) == bootstrap_speedup([11, 31], [1, 2], [11, 31], [2, 5])
    assert figures(data[:1])["speedup_ci95"] is None


def test_the_objective_is_a_figure_or_the_lower_end_of_its_interval() -> None:
    summary = {"speedup": 1.5, "speedup_ci95": (1.2, 1.9), "tokens_per_step": 2.0}
    assert objective(summary, "speedup", "estimate") == 1.5
    assert objective(summary, "speedup", "lower") == 1.2
    assert objective(summary, "tokens_per_step", "lower") is None


BAD = [
    (("speed", "estimate", 9), "objective: expected one of speedup, tokens_per_step, tokens_per_second, got 'speed'"),
    (("speedup", "upper", 9), "objective_bound: expected one of estimate, lower, got 'upper'; choose one of these"),
    (("speedup", "lower", 1), "objective_bound=lower: expected two prompts or more, for an interval, got 1; raise"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_objectives_are_refused(options: tuple[str, str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        check_objective(*options)
    assert str(error.value).startswith(message)
