"""A drafter is told what the target said at every node of the last tree."""

from __future__ import annotations

import pytest
import torch

from drafters.adaptive import Adaptive
from drafters.ngram import Ngram
from drafters.union import Union
from specdec.decoding.generate import speculative
from specdec.decoding.protocols import Drafter, DraftState, Session, Traits, Verifier
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.model.target import TargetModel
from specdec.trees.tree import PAD, TokenTree, histories
from verifiers.acceptance.exact import Exact
from verifiers.path_by_path import PathByPath
from verifiers.tree_attention import TreeAttention

TEXTS = ["abcabcabc abcabc", "x", "to be or not to be, that is the question: to be"]


class Listener:
    """Drafts as an n-gram table does, and compares what it is told with forwards of the stock model."""

    traits = Traits(remembers=True, top_k=3)
    max_nodes = 8

    def __init__(self) -> None:
        self._ngram, self.compared, self.rejected = Ngram(3, 1, 4, 3, 7), 0, 0

    def start(self, session: Session) -> None:
        self._ngram.start(session)
        self._target, self._rows = session.target, [list(row[:-1]) for row in session.rows]

    def propose(self, state: DraftState) -> TokenTree:
        verified = state.verified
        assert verified is not None
        texts = histories(
            verified.tree,
            [[*row, root] for row, root in zip(self._rows, verified.tree.tokens[:, 0].tolist(), strict=True)],
        )
        for i, text in enumerate(texts):
            row, node = divmod(i, verified.tree.nodes)
            if verified.tree.tokens[row, node] != PAD and state.room[row]:
                self.rejected += node not in state.kept.path[row].tolist()
                self._compare(text, verified.tokens[row, node], verified.probs[row, node])
        self._rows = [list(row[:-1]) for row in state.rows]
        return self._ngram.propose(state)

    def _compare(self, text: list[int], tokens: torch.Tensor, probs: torch.Tensor) -> None:
        with self._target.stock() as model:
            expected = model(torch.tensor([text])).logits[0, -1].softmax(-1)
        torch.testing.assert_close(probs, expected.topk(3).values, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(probs, expected[tokens], rtol=1e-3, atol=1e-5)
        self.compared += 1


@pytest.mark.parametrize("verifier", [TreeAttention, PathByPath])
@pytest.mark.parametrize("runtime", ["auto", "stock"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_node_is_what_a_separate_forward_says(
    tiny: TargetModel, verifier: type, runtime: str, count: int
) -> None:
    stock = {"name": "stock", "tokenizer": tiny.tokenizer, "runtime": "stock"}
    target = tiny if runtime == "auto" else TargetModel(tiny.model, **stock)  # type: ignore[arg-type]
    assert tiny.tokenizer is not None
    prompts = [tiny.tokenizer.encode(text) for text in TEXTS[:count]]
    listener, judge = Listener(), verifier(target)
    assert isinstance(judge, Verifier)
    stop = StopRule(12, tiny.eos)
    speculative(prompts, listener, judge, Exact(), SamplingParams(), stop, [[0, r] for r in range(count)])
    assert listener.compared >= 12 * count
    assert listener.rejected


def test_who_does_not_ask_is_told_nothing(tiny: TargetModel) -> None:
    class Deaf(Ngram):
        def propose(self, state: DraftState) -> TokenTree:
            assert state.verified is None
            return super().propose(state)

    speculative([[1, 2, 1]], Deaf(3, 1, 4, 3, 7), TreeAttention(tiny), Exact(), SamplingParams(), StopRule(5), [[0]])


class Cheap:
    """A cost curve on which every node pays."""

    def seconds(self, nodes: int, batch: int = 1, context: int = 512) -> float:
        return 1 + 0.001 * nodes * batch


@pytest.mark.parametrize("wrap", ["union", "adaptive"])
def test_drafters_inside_others_are_told_too(tiny: TargetModel, wrap: str) -> None:
    listener = Listener()
    wrapped: Drafter = (
        Union({"a": listener, "b": Ngram(2, 1, 2, 1, 3)}, 6)
        if wrap == "union"
        else Adaptive(listener, Cheap(), draft_ms=0.0)
    )
    speculative([[5, 6, 5, 6, 5]], wrapped, TreeAttention(tiny), Exact(), SamplingParams(), StopRule(12), [[0]])
    assert listener.compared >= 12
