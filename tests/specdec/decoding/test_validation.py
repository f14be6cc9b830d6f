"""`bench validate=true`: every tree is checked, and an error names the drafter and the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from specdec.decoding.generate import speculative
from specdec.decoding.protocols import DraftState, Session
from specdec.decoding.sampling import SamplingParams
from specdec.decoding.stopping import StopRule
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from verifiers.acceptance.exact import Exact
from verifiers.tree_attention import TreeAttention

VOCAB = 512


class Broken:
    """Two children of every root; from the second step on, `breaks` spoils the tree."""

    max_nodes = 3

    def __init__(self, breaks: Callable[[TokenTree], TokenTree]) -> None:
        self._breaks = breaks

    def start(self, session: Session) -> None:
        self._steps, self._vocab = 0, session.target.vocab_size

    def propose(self, state: DraftState) -> TokenTree:
        rows = len(state.rows)
        tokens = torch.tensor([[row[-1], 1, 2] for row in state.rows])
        q = torch.zeros(rows, 3, self._vocab)
        q[:, 0, 1:3] = 0.5
        parents = torch.tensor([[-1, 0, 0]]).repeat(rows, 1)
        tree = TokenTree(tokens, parents, q, confidence=torch.full((rows, 3), 0.5))
        self._steps += 1
        return tree if self._steps == 1 else self._breaks(tree)


def changed(tree: TokenTree, **at: tuple[tuple[int, ...], float]) -> TokenTree:
    """The tree with one entry of some tensors changed."""
    tensors = {name: getattr(tree, name).clone() for name in at}
    for name, (place, value) in at.items():
        tensors[name][place] = value
    return replace(tree, **tensors)


CASES: dict[str, tuple[Callable[[TokenTree], TokenTree], str]] = {
    "token": (lambda t: changed(t, tokens=((0, 1), 99_999)), "tree: expected tokens below"),
    "parent": (lambda t: changed(t, parents=((0, 1), 2)), "got parent 2 at node 1 of row 0"),
    "root": (lambda t: changed(t, tokens=((1, 0), 7)), "the last committed one, as the root of row 1, got 7"),
    "size": (
        lambda t: TokenTree(t.tokens.repeat(1, 2), torch.tensor([[-1, 0, 0, 0, 0, 0]]).repeat(2, 1)),
        "tree: expected at most max_nodes = 3 nodes, the root included, got 6",
    ),
    "rows": (lambda t: TokenTree(t.tokens[:1], t.parents[:1]), "tree: expected 2 rows, got 1"),
    "sum": (lambda t: changed(t, probs=((1, 0, 1), 0.7)), "got sum 1.2 at row 1, node 0"),
    "impossible": (lambda t: changed(t, tokens=((0, 2), 5)), "got q = 0 for the token of node 2 of row 0"),
    "confidence": (
        lambda t: changed(t, confidence=((0, 2), 1.5)),
        "tree: expected confidence in [0, 1], got 1.5 at node 2 of row 0; return P(right | parent right), or -1",
    ),
    "not a number": (lambda t: changed(t, confidence=((0, 2), float("nan"))), "expected confidence in [0, 1], got nan"),
    "twice": (
        lambda t: replace(changed(t, tokens=((1, 2), 1)), replacement=False),
        "siblings with different tokens, as replacement=False says, got a repeated one at node 2 of row 1",
    ),
}


def run(tiny: TargetModel, breaks: Callable[[TokenTree], TokenTree], validate: bool = True) -> list[list[int]]:
    parts = (Broken(breaks), TreeAttention(tiny), Exact(), SamplingParams(1.0), StopRule(9), [[0], [1]])
    return speculative([[5, 6], [7, 8, 9]], *parts, validate=validate).texts


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_named(tiny: TargetModel, name: str) -> None:
    breaks, message = CASES[name]
    with pytest.raises(InputError) as error:
        run(tiny, breaks)
    assert str(error.value).startswith("drafter Broken, step 1: ")
    assert message in str(error.value)


def test_a_valid_tree_changes_nothing(tiny: TargetModel) -> None:
    silent = lambda t: changed(t, confidence=((0, 2), -1.0))  # noqa: E731
    assert run(tiny, silent) == run(tiny, silent, validate=False)
