"""Faults of a rule that spoil a proof: random numbers from elsewhere, and verdicts that change when asked again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from specdec.decoding.protocols import AcceptanceRule, Verdict
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.exactness.enumeration import EnumeratedDraws, Enumeration
from specdec.trees.tree import TokenTree

Answer = TypeVar("Answer")
SEEDS = 20_261_128, 7, 99, 12_345  # of the global generators, in the first call and in repetitions


def asked_again(name: str, call: Callable[[bool], Answer], same: Callable[[Answer, Answer], bool]) -> Answer:
    """Return the answer of a call, which is made again while the global generators are seeded otherwise.

    Args:
        name: name of the rule.
        call: makes the call; gets whether it is repeated, with the outcomes of the first.
        same: compares two answers.

    Raises:
        InputError: the answers differ. The message tells global random state from other sources.
    """
    with _seeded(SEEDS[0]):
        first = call(False)
    if all(_agrees(first, call, same, seed) for seed in SEEDS[1:]):
        return first
    fix = "draw from the given draws only, and keep no state"
    if all(_agrees(first, call, same, SEEDS[0]) for _ in SEEDS[1:]):
        got = "one that depends on global random state (torch, numpy or random)"
    else:
        got = "another one when the same outcomes were drawn again"
    raise InputError(name, expected="a verdict that is a function of p, q, the draft and the draws", got=got, fix=fix)


def _agrees(first: Answer, call: Callable[[bool], Answer], same: Callable[[Answer, Answer], bool], seed: int) -> bool:
    with _seeded(seed):
        try:
            return same(first, call(True))
        except InputError:  # other probabilities when the same outcomes were drawn
            return False


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore them afterwards."""
    states: tuple[Any, ...] = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class Watched:
    """A rule whose every call is made again with the same draws.

    Args:
        rule: the rule under test.
    """

    def __init__(self, rule: AcceptanceRule) -> None:
        self.rule, self.name, self.lossless = rule, rule.name, rule.lossless

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        assert isinstance(draws, EnumeratedDraws)
        p, enumeration = target_probs.clone(), draws.enumeration

        def call(again: bool) -> Verdict:
            repeated = EnumeratedDraws.of(Enumeration(enumeration._taken, enumeration.weight.clone()))
            return self.rule.accept(tree, target_probs, repeated if again else draws)

        verdict = asked_again(self.name, call, _equal)
        if not torch.equal(p, target_probs):
            fix = "copy p before changing it"
            raise InputError(self.name, expected="p and the tree as they were", got="changed ones", fix=fix)
        return verdict


def _equal(one: Verdict, other: Verdict) -> bool:
    return torch.equal(one.path, other.path) and torch.equal(one.next_token, other.next_token)
