"""Statistics that trees are chosen by, and the lists of trees `hardware.planning.best_plan` chooses from.

A node adds to the tokens of a step the probability that it is accepted, whatever else is drafted, and no more than its
parent does. So the n likeliest nodes down to a depth are a tree, and no tree of that size and depth expects more: what
Sequoia's dynamic programming over size and depth finds (arXiv 2402.12374) is found by sorting. Every size and every
depth is then held against what it costs.

That is the best of all trees where drafting a level costs the same however wide it is (heads, lookups, a draft model
bound by memory). Where it does not, the true cost decides between these trees, and a tree that is none of them may be
better.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from specdec.errors import InputError
from specdec.hardware.planning import Acceptance, Ranked
from specdec.metrics import StepRecord
from specdec.trees.topology import frequent_paths
from specdec.trees.tree import PAD

LEAST = 100  # observations at depth 1; fewer are refused
LEAST_DEEPER = 20  # at a deeper depth; fewer end the statistics there


@dataclass(frozen=True)
class Acceptances:
    """How often the child of each rank was right, where its parent was.

    right [depths ranks], tried [depths ranks]: counts.
    """

    right: np.ndarray
    tried: np.ndarray

    @classmethod
    def of_ranks(cls, right: np.ndarray, ranks: int) -> Acceptances:
        """right [positions depths]: the rank that was right where all before it were among the candidates, or -1
        (`TextTrace.right`)."""
        hits, tried = [], []
        reached = np.ones(len(right), dtype=bool)
        for column in right.T:
            hits.append(np.bincount(column[column >= 0], minlength=ranks)[:ranks])
            tried.append(np.full(ranks, reached.sum()))
            reached &= column >= 0
        return cls(np.stack(hits), np.stack(tried))

    @classmethod
    def of_steps(cls, records: Iterable[StepRecord]) -> Acceptances:
        """Of any run: siblings in the order of their nodes. A child counts as tried where its parent was accepted and
        the text went on."""
        right: dict[tuple[int, int], int] = {}
        tried: dict[tuple[int, int], int] = {}
        for record in records:
            whole = record.emitted == record.accepted + 1
            for depth, node in enumerate(record.path):
                last = depth == len(record.path) - 1
                if node == PAD or (last and not whole):
                    continue  # nobody judged what lies past the end of a text
                children = [i for i, parent in enumerate(record.parents) if parent == node]
                for rank, child in enumerate(children):
                    tried[depth, rank] = tried.get((depth, rank), 0) + 1
                    if not last and child == record.path[depth + 1]:
                        right[depth, rank] = right.get((depth, rank), 0) + 1
        shape = tuple(1 + max((key[axis] for key in tried), default=0) for axis in (0, 1))
        counts = np.zeros((2, *shape), dtype=np.int64)
        for which, found in enumerate((right, tried)):
            for key, count in found.items():
                counts[(which, *key)] = count
        return cls(counts[0], counts[1])

    def rates(self, sure: float = 0.0) -> Acceptance:
        """[depth][rank]. sure: how many standard errors to stay below what was observed (Wilson's interval, 1.96 for
        95 %): the fewer the observations, the lower.

        Raises:
            InputError: fewer than `LEAST` observations at depth 1.
        """
        if (have := int(self.tried[0, 0])) < LEAST:
            fix = "run more prompts, or longer texts"
            raise InputError("acceptance statistics", expected=f"at least {LEAST} steps", got=have, fix=fix)
        low, _ = self.interval(sure)
        return [
            [float(rate) for rate, tried in zip(rates, trials, strict=True) if tried >= LEAST_DEEPER]
            for rates, trials in zip(low, self.tried, strict=True)
            if trials[0] >= LEAST_DEEPER
        ]

    def interval(self, sure: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
        """Wilson's, of each rate [depths ranks]; the whole of [0, 1] where nothing was tried."""
        n = np.maximum(self.tried, 1)
        p, z = self.right / n, sure * sure / n
        middle, half = (p + z / 2) / (1 + z), np.sqrt(p * (1 - p) * z + z * z / 4) / (1 + z)
        none = self.tried == 0
        return np.where(none, 0.0, (middle - half).clip(0)), np.where(none, 1.0, (middle + half).clip(max=1))


def by_depth(ranked: Ranked, nodes: int) -> list[Ranked]:
    """For every depth that the paths reach, those that go no deeper: the first n are the best tree of n nodes."""
    trees = []
    for depth in range(1, max(map(len, ranked[0]), default=0) + 1):
        kept = [(path, gain) for path, gain in zip(*ranked, strict=True) if len(path) <= depth][:nodes]
        trees.append(tuple(zip(*kept, strict=True)))
    return trees  # type: ignore[return-value]


def counted(right: np.ndarray, nodes: int, least: int = LEAST) -> list[Ranked]:
    """By depth, from how often all of a path was right [positions depths]: knows that candidates err together.

    Raises:
        InputError: fewer positions than `least`, or nothing was ever right.
    """
    if len(right) < least:
        fix = "record more prompts, or longer texts"
        raise InputError("trace", expected=f"at least {least} positions", got=len(right), fix=fix)
    ranked = frequent_paths(right.tolist())
    if not ranked[0]:
        raise InputError("trace", expected="some candidates that are right", got="none", fix="train the drafter")
    return by_depth(ranked, nodes)
