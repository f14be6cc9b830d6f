"""Acceptance statistics, and the lists of trees that `hardware.planning.best_plan` chooses from.

A node adds its probability of being accepted to the expected tokens of a step, regardless of the other nodes, and never
more than its parent adds. So the n most probable nodes up to a depth form a tree, and no other tree of that size and
depth has a higher expectation. If acceptances fall from rank to rank, sorting therefore finds what Sequoia finds by
dynamic programming over size and depth (arXiv 2402.12374). If they are by child number and do not fall, it does not:
child j can only be drafted after child j - 1. `best_plan` then compares every size and depth by its cost.

The result is the best of all trees if the cost of drafting a level does not depend on its width (heads, lookups, a
memory-bound draft model). Otherwise it is the best of these trees by their true cost, but another tree may be better.
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
LEAST_DEEPER = 20  # observations at a deeper depth; with fewer, the statistics end above it


@dataclass(frozen=True)
class Acceptances:
    """How often the child of each rank was right, counted over positions at which its parent was right.

    Args:
        right: number of times the child was right, [depths ranks].
        tried: number of times it was tried, [depths ranks].
    """

    right: np.ndarray
    tried: np.ndarray

    @classmethod
    def of_ranks(cls, right: np.ndarray, ranks: int) -> Acceptances:
        """Count a trace.

        Args:
            right: rank of the right candidate if all candidates above it were right too, else -1; [positions depths],
                see `TextTrace.right`.
            ranks: number of candidates at each depth.
        """
        hits, tried = [], []
        reached = np.ones(len(right), dtype=bool)
        for column in right.T:
            hits.append(np.bincount(column[column >= 0], minlength=ranks)[:ranks])
            tried.append(np.full(ranks, reached.sum()))
            reached &= column >= 0
        return cls(np.stack(hits), np.stack(tried))

    @classmethod
    def of_steps(cls, records: Iterable[StepRecord]) -> Acceptances:
        """Count the step records of any run. The rank of a child is its index among its siblings, by node.

        A child counts as tried if its parent was accepted and the text did not end there.
        """
        right: dict[tuple[int, int], int] = {}
        tried: dict[tuple[int, int], int] = {}
        for record in records:
            whole = record.emitted == record.accepted + 1
            for depth, node in enumerate(record.path):
                last = depth == len(record.path) - 1
                if node == PAD or (last and not whole):
                    continue  # nodes past the end of a text were not judged
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
        """Return acceptances, [depth][rank].

        Args:
            sure: if above 0, return the lower bound of Wilson's interval at this many standard errors (1.96 for 95 %)
                instead of the observed rate. The fewer the observations, the lower the bound.

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
        """Return Wilson's interval of each rate as (low, high), each [depths ranks]; (0, 1) if nothing was tried."""
        n = np.maximum(self.tried, 1)
        p, z = self.right / n, sure * sure / n
        middle, half = (p + z / 2) / (1 + z), np.sqrt(p * (1 - p) * z + z * z / 4) / (1 + z)
        none = self.tried == 0
        return np.where(none, 0.0, (middle - half).clip(0)), np.where(none, 1.0, (middle + half).clip(max=1))


def by_depth(ranked: Ranked, nodes: int) -> list[Ranked]:
    """Return, for each maximum depth, the paths up to that depth; the first n of a list are the best tree of n nodes.

    Args:
        ranked: paths, best first, and their gains.
        nodes: largest number of paths in a list.
    """
    trees = []
    for depth in range(1, max(map(len, ranked[0]), default=0) + 1):
        kept = [(path, gain) for path, gain in zip(*ranked, strict=True) if len(path) <= depth][:nodes]
        trees.append(tuple(zip(*kept, strict=True)))
    return trees  # type: ignore[return-value]


def counted(right: np.ndarray, nodes: int, least: int = LEAST) -> list[Ranked]:
    """Return the best trees for each maximum depth, from how often whole paths were right.

    Unlike `independent`, this accounts for candidates that are wrong together.

    Args:
        right: as in `Acceptances.of_ranks`, [positions depths].
        nodes: largest number of nodes in a tree.
        least: smallest number of positions.

    Raises:
        InputError: fewer positions than `least`, or no candidate was ever right.
    """
    if len(right) < least:
        fix = "record more prompts, or longer texts"
        raise InputError("trace", expected=f"at least {least} positions", got=len(right), fix=fix)
    ranked = frequent_paths(right.tolist())
    if not ranked[0]:
        raise InputError("trace", expected="some candidates that are right", got="none", fix="train the drafter")
    return by_depth(ranked, nodes)
