"""Greedy text is the target's own, for every drafter x verifier x lossless acceptance rule x batch size.

Parametrized over the YAML files: a new drafter is proven lossless without a new test.
"""

from __future__ import annotations

import pytest
from hydra.utils import instantiate

from drafters.draft_model.drafter import DraftModel
from drafters.medusa import Medusa
from drafters.ngram import Ngram
from drafters.none import NoDrafter
from specdec.decoding.generate import autoregressive, speculative
from specdec.decoding.protocols import AcceptanceRule, Drafter, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.metrics import StepMetrics
from specdec.model.target import TargetModel
from tests.conftest import tiny_draft
from tests.support.configs import composed, group
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

TEXTS = ["hello world, hello wor", "abcabcabc abcabc", "x", "to be or not to be, that is the question: to be"]
NEW_TOKENS = 24
GREEDY, PENALTY = SamplingParams(), SamplingParams(repetition_penalty=1.2)


def prompts(target: TargetModel, count: int) -> list[list[int]]:
    assert target.tokenizer is not None
    return [target.tokenizer.encode(text) for text in TEXTS[:count]]


def seeds(count: int) -> list[list[int]]:
    return [[0, row] for row in range(count)]


@pytest.fixture(scope="module")
def baseline(tiny: TargetModel) -> dict[SamplingParams, list[list[int]]]:
    """Every text alone, token by token, through the stock model: nothing of ours but the argmax."""
    stop = StopRule(NEW_TOKENS, tiny.eos)
    texts: dict[SamplingParams, list[list[int]]] = {}
    for sampling in (GREEDY, PENALTY):
        oracle = PathByPath(tiny)
        alone = [([p], NoDrafter(), oracle, Exact(), sampling, stop, [[0]]) for p in prompts(tiny, len(TEXTS))]
        texts[sampling] = [speculative(*arguments).texts[0] for arguments in alone]
    return texts


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("acceptance", group("acceptance"))
@pytest.mark.parametrize("verifier", group("verifier"))
@pytest.mark.parametrize("drafter", group("drafter"))
def test_greedy_text_is_the_targets_own(
    tiny: TargetModel, baseline: dict, drafter: str, verifier: str, acceptance: str, batch: int
) -> None:
    cfg = composed(f"drafter={drafter}", f"verifier={verifier}", f"acceptance={acceptance}")
    rule: AcceptanceRule = instantiate(cfg.acceptance)
    if not rule.lossless:
        pytest.skip(f"{acceptance} is lossy by design")
    parts: tuple[Drafter, Verifier] = (
        instantiate(cfg.drafter, _convert_="all"),
        instantiate(cfg.verifier, target=tiny),
    )
    try:
        done = speculative(prompts(tiny, batch), *parts, rule, GREEDY, StopRule(NEW_TOKENS, tiny.eos), seeds(batch))
    except InputError as refusal:
        pytest.skip(f"{acceptance} refuses the trees of {drafter}: {refusal}")
    assert done.texts == baseline[GREEDY][:batch]


def drafters_that_err() -> list[Drafter]:
    """Partly right, so that acceptance, rejection and recovery all happen."""
    draft = tiny_draft()
    return [Ngram(3, 1, 5, 3, 12), DraftModel(draft, [1, 1, 1, 1]), DraftModel(draft, [3, 2, 1]), Medusa("fresh", 12)]


ERRING = ["ngram", "chain", "tree", "medusa"]


@pytest.mark.parametrize("sampling", [GREEDY, PENALTY], ids=["greedy", "with a penalty per node"])
@pytest.mark.parametrize("drafter", drafters_that_err(), ids=ERRING)
def test_greedy_text_survives_wrong_drafts(
    tiny: TargetModel, baseline: dict, drafter: Drafter, sampling: SamplingParams
) -> None:
    stop = StopRule(NEW_TOKENS, tiny.eos)
    done = speculative(prompts(tiny, 4), drafter, TreeAttention(tiny), Exact(), sampling, stop, seeds(4))
    assert done.texts == baseline[sampling]
    metrics = StepMetrics.of(done.steps)
    assert metrics.acceptance_rate is not None
    assert 0 < metrics.acceptance_rate < 1


@pytest.mark.parametrize("drafter", drafters_that_err(), ids=ERRING)
def test_sampled_text_of_a_row_is_what_it_would_be_alone(tiny: TargetModel, drafter: Drafter) -> None:
    sampling = SamplingParams(temperature=0.8, top_k=40, repetition_penalty=1.1)
    parts = (drafter, TreeAttention(tiny), Exact(), sampling, StopRule(NEW_TOKENS, tiny.eos))
    together = speculative(prompts(tiny, 4), *parts, seeds(4)).texts
    alone = [speculative([p], *parts, [seed]).texts[0] for p, seed in zip(prompts(tiny, 4), seeds(4), strict=True)]
    assert together == alone


def test_autoregressive_equals_the_stock_model_and_itself_alone(tiny: TargetModel, baseline: dict) -> None:
    stop = StopRule(NEW_TOKENS, tiny.eos)
    for sampling, expected in baseline.items():
        assert autoregressive(prompts(tiny, 4), tiny, sampling, stop, seeds(4)).texts == expected


def test_drafting_nothing_is_autoregressive_decoding_also_when_sampling(tiny: TargetModel) -> None:
    sampling, stop = SamplingParams(temperature=1.0), StopRule(NEW_TOKENS, tiny.eos)
    plain = autoregressive(prompts(tiny, 3), tiny, sampling, stop, seeds(3))
    done = speculative(prompts(tiny, 3), NoDrafter(), TreeAttention(tiny), Exact(), sampling, stop, seeds(3))
    assert done.texts == plain.texts
    assert StepMetrics.of(done.steps).tokens_per_step == 1.0


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_limits_inside_a_block(tiny: TargetModel, baseline: dict, limit: int) -> None:
    stop = StopRule(limit, tiny.eos)
    done = speculative(prompts(tiny, 4), Ngram(3, 1, 8, 2, 16), TreeAttention(tiny), Exact(), GREEDY, stop, seeds(4))
    assert done.texts == [text[:limit] for text in baseline[GREEDY]]


def test_eos_inside_a_block_ends_the_text_and_keeps_no_kv_past_it(tiny: TargetModel, baseline: dict) -> None:
    """Any token can play EOS: take one that the baseline emits, and a perfect draft that runs past it."""
    prompt, text = prompts(tiny, 4)[3], baseline[GREEDY][3]
    end = next(i for i in range(3, 8) if text.index(text[i]) == i)
    eos, expected = text[end], text[: end + 1]
    verifier = TreeAttention(tiny)
    perfect = DraftModel(tiny, [1] * 8)
    done = speculative([prompt], perfect, verifier, Exact(), GREEDY, StopRule(24, frozenset({eos})), seeds(1))
    assert done.texts == [expected]
    last = done.steps[-1]
    assert last.tokens == expected[1:][-last.emitted :]
    assert last.accepted == last.offered == last.emitted  # cut: no bonus token, and nothing judged past the end
    assert verifier._cache is not None
    assert verifier._cache.host_lengths == [len(prompt) + len(expected) - 1]


def test_a_perfect_draft_is_accepted_whole(tiny: TargetModel) -> None:
    """No hole in the draft's cache after a full acceptance, greedy and sampled."""
    for sampling in (GREEDY, SamplingParams(temperature=1.0)):
        parts = (DraftModel(tiny, [1, 1, 1]), TreeAttention(tiny), Exact(), sampling, StopRule(21, frozenset()))
        metrics = StepMetrics.of(speculative(prompts(tiny, 2), *parts, seeds(2)).steps)
        assert metrics.acceptance_rate == 1.0
        assert metrics.tokens_per_step == 4.0


def test_prompts_that_are_empty_or_too_long_are_refused(tiny: TargetModel) -> None:
    with pytest.raises(InputError, match="prompt: expected at least one token, got an empty prompt"):
        autoregressive([[1], []], tiny, GREEDY, StopRule(4), seeds(2))
    with pytest.raises(InputError) as error:
        autoregressive([[1] * 4090], tiny, GREEDY, StopRule(10), seeds(1))
    assert str(error.value) == (
        "prompt: expected prompt and new tokens within the context window of 4096 tokens, got 4090 + 10; "
        "shorten the prompt or lower generation.max_new_tokens"
    )
