"""The curve over batch size: the same work at every size, and its ratios."""

from __future__ import annotations

import pytest

from drafters.ngram import Ngram
from specdec.decoding.decoder import Decoder
from specdec.decoding.generate import Generation
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.measure.batch_curve import BatchCurve, BatchSize, Decoding
from specdec.model.target import TargetModel
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

PROMPTS = [[5, 6, 7, 5, 6, 7, 5], [9, 9, 9], [1, 2, 3, 4, 1, 2], [40, 41]]


def curve(target: TargetModel, new: int = 6, sizes: tuple[int, ...] = (1, 2, 4), rounds: int = 2) -> list[BatchSize]:
    decoder = Decoder(Ngram(3, 1, 3, 2, 3), TreeAttention(target), Exact(), SamplingParams(), StopRule(new))
    return BatchCurve(PROMPTS, decoder, list(sizes), rounds).run()


def test_every_size_does_the_same_work(tiny: TargetModel) -> None:
    sizes = curve(tiny)
    assert [(at.size, at.plain.batches) for at in sizes] == [(1, 4), (2, 2), (4, 1)]
    for at in sizes:
        assert at.plain.tokens == at.drafted.tokens == len(PROMPTS) * 6
        assert len(at.plain.seconds) == len(at.drafted.seconds) == 2
        figures = at.as_dict()
        assert figures["speedup"] == pytest.approx(at.drafted.faster_than(at.plain)[0])
        assert figures["tokens_per_step"] >= 1
        assert figures["autoregressive_step_ms"] > 0


def test_ratios_are_of_tokens_per_second() -> None:
    def decoding(tokens: int, seconds: float, prefill: float) -> Decoding:
        made = Decoding()
        made.add([Generation([[0] * tokens], seconds, prefill, [])])
        return made

    slow, fast = decoding(10, 6.0, 1.0), decoding(20, 4.0, 2.0)
    assert fast.faster_than(slow) == (pytest.approx(3.0), None)
    assert fast.decodes_faster_than(slow) == (pytest.approx(5.0), None)


BAD = [
    ({"sizes": (1, 3)}, r"batch.sizes: expected sizes that divide the 4 prompts there are, got \[3\]"),
    ({"sizes": (8,)}, r"batch.sizes: expected sizes that divide the 4 prompts there are, got \[8\]"),
    ({"sizes": ()}, r"batch.sizes: expected 1 or more, got 0"),
    ({"rounds": 0}, r"batch.rounds: expected 1 or more, got 0"),
    ({"new": 1}, r"batch.max_new_tokens: expected 2 or more, got 1"),
    ({"new": 4090}, r"a prompt of the batch curve: expected prompt and new tokens within the context window"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_bad_input(tiny: TargetModel, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        curve(tiny, **options)
