"""Sampled text stays exact under processors: p and q carry the same ones at every node, stateful ones included."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from specdec.decoding.grow_fixed import level_q
from specdec.decoding.processors import TextProcessors
from specdec.decoding.protocols import AcceptanceRule
from specdec.decoding.sampling import SamplingParams
from specdec.exactness.enumeration import Tables, emission
from specdec.trees.tree import TokenTree
from verifiers.acceptance.block import BlockVerification
from verifiers.acceptance.exact import Exact
from verifiers.acceptance.traversal import Traversal
from verifiers.acceptance.without_replacement import WithoutReplacement

VOCAB, DEPTH, PROMPT = 3, 2, [0, 2]


class Grammar(LogitsProcessor):
    """Keeps a state from call to call, as a grammar that follows the text does: the sum of the tokens it has seen says
    which one may not follow."""

    def __init__(self) -> None:
        self.seen = self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen, self.calls = self.seen + int(input_ids[0, -1]), self.calls + 1
        scores = scores.clone()
        scores[:, (self.seen + self.calls) % VOCAB] = -torch.inf
        return scores


PROCESSORS: dict[str, list[LogitsProcessor]] = {
    "grammar": [Grammar()],
    "n-grams": [NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.7)],
    "both": [RepetitionPenaltyLogitsProcessor(0.6), Grammar()],
}
RULES: list[tuple[AcceptanceRule, list[int], str]] = [
    (Exact(), [2, 1], "with_replacement"),
    (Exact(), [2, 1], "top_k"),
    (WithoutReplacement(), [2, 2], "without_replacement"),
    (Traversal(), [2, 2], "without_replacement"),
    (BlockVerification(), [1, 1], "with_replacement"),
]


def every_prefix(depth: int) -> list[tuple[int, ...]]:
    return [prefix for length in range(depth + 1) for prefix in product(range(VOCAB), repeat=length)]


def tree_of_all(depth: int) -> TokenTree:
    """One tree with a node for every text of at most `depth` tokens behind the prompt."""
    prefixes = every_prefix(depth)
    parents = [-1 if not prefix else prefixes.index(prefix[:-1]) for prefix in prefixes]
    return TokenTree.from_rows([[prefix[-1] if prefix else PROMPT[-1] for prefix in prefixes]], [parents])


def levels(rows: Tensor, depth: int) -> list[Tensor]:
    """Rows of `every_prefix`, by length."""
    return list(rows.split([VOCAB**d for d in range(depth + 1)]))


def one_after_the_other(logits: Tensor, processors: list[LogitsProcessor], warm: SamplingParams) -> Tensor:
    """p after every prefix as `generate` would make it: fresh processors, called once a token."""
    found = []
    for prefix in every_prefix(DEPTH):
        fresh, scores = LogitsProcessorList(copy.deepcopy(processors)), logits[:1]
        for length in range(len(prefix) + 1):
            scores = logits[every_prefix(DEPTH).index(prefix[:length])][None]
            scores = fresh(torch.tensor([PROMPT + list(prefix[:length])]), scores)
        found.append(warm.distribution(scores))
    return torch.cat(found)


@pytest.mark.parametrize(("rule", "widths", "how"), RULES, ids=lambda value: getattr(value, "name", str(value)))
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_text_has_the_distribution_of_the_processed_target(
    name: str, rule: AcceptanceRule, widths: list[int], how: str
) -> None:
    generator = torch.Generator().manual_seed(len(name))
    logits = [torch.randn(len(every_prefix(DEPTH)), VOCAB, generator=generator, dtype=torch.float64) for _ in range(2)]
    text = TextProcessors(LogitsProcessorList(PROCESSORS[name]), len(PROMPT), frozenset())
    sampling = SamplingParams(temperature=0.8, min_p=0.05, texts=(text,))
    scores = sampling.tree_scores(logits[0][None], tree_of_all(DEPTH), [PROMPT])[0]
    p = Tables(levels(sampling.distribution(scores), DEPTH))
    q: list[Any] = []
    for depth, of_level in enumerate(levels(logits[1], DEPTH)[:DEPTH]):
        q.append(level_q(of_level[None], tree_of_all(depth), [PROMPT], sampling)[0])
    true = Tables(levels(one_after_the_other(logits[0], PROCESSORS[name], sampling), DEPTH))
    made = emission(rule, widths, p, Tables(q), how)
    assert float((made.joint - true.joint().nan_to_num()).abs().max()) < 1e-12
    # the objects that were given are copied, never advanced
    assert all(not isinstance(processor, Grammar) or processor.calls == 0 for processor in PROCESSORS[name])
