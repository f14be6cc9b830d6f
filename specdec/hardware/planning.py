"""Choose the tree with the most expected tokens per second, from acceptances and cost curves.

As in Medusa and Sequoia (arXiv 2401.10774, 2402.12374), the probability that a node is accepted is the product of the
acceptances on its path. Acceptances are assumed not to depend on batch, context or machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from specdec.errors import InputError
from specdec.hardware.curves import CostCurve, DraftCost
from specdec.trees.topology import IndexPath, best_tree

Acceptance = Sequence[Sequence[float]]  # [depth][rank]: P(the child of this rank is accepted | its parent is)
Ranked = tuple[Sequence[IndexPath], Sequence[float]]  # paths, best first; expected tokens per step that each adds


@dataclass(frozen=True)
class Plan:
    """The best tree for a batch and a context.

    Args:
        batch: rows.
        context: tokens of each row in the KV cache.
        paths: paths of the tree's nodes; empty if drafting does not pay and a step is plain decoding.
        tokens_per_step: expected tokens per step and row.
        seconds: time of a step.
        draft_seconds: the part of `seconds` that is drafting.
        plain_seconds: time of a step of plain decoding.
    """

    batch: int
    context: int
    paths: Sequence[IndexPath]
    tokens_per_step: float
    seconds: float
    draft_seconds: float
    plain_seconds: float

    @property
    def levels(self) -> list[int]:
        return levels(self.paths)

    @property
    def speedup(self) -> float:
        return self.tokens_per_step * self.plain_seconds / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Expected tokens per second of all rows together."""
        return self.batch * self.tokens_per_step / self.seconds

    @property
    def plain_tokens_per_second(self) -> float:
        return self.batch / self.plain_seconds


@dataclass(frozen=True)
class Planner:
    """Choose trees for given acceptances and cost curves.

    Args:
        acceptance: acceptances by depth and rank, see `Acceptance`.
        verify: cost of the target's forward.
        draft: cost of drafting.
        most_nodes: largest number of drafted nodes, the root not counted.

    Raises:
        InputError: no acceptances, negative ones, or siblings whose acceptances add up to more than 1.
    """

    acceptance: Acceptance
    verify: CostCurve
    draft: DraftCost
    most_nodes: int = 64

    def __post_init__(self) -> None:
        if not self.acceptance or not all(self.acceptance) or self.most_nodes < 1:
            expected = "a list of acceptances for each depth, and a tree of at least one node"
            raise InputError("acceptance", expected=expected, got=self.acceptance, fix="measure a run, or write one")
        for depth, rates in enumerate(self.acceptance, 1):
            if min(rates) < 0 or sum(rates) > 1 + 1e-9:
                expected = "probabilities of siblings, at most 1 together"
                fix = "give each rank's own share, not cumulative ones"
                raise InputError(f"acceptance at depth {depth}", expected=expected, got=list(rates), fix=fix)

    @cached_property
    def _trees(self) -> list[Ranked]:
        return independent(self.acceptance, self.most_nodes)

    def best(self, batch: int, context: int) -> Plan:
        """Return the plan with the most tokens per second, among the best trees of each size and depth."""
        return best_plan(self._trees, self.verify, self.draft, batch, context)


def independent(acceptance: Acceptance, nodes: int) -> list[Ranked]:
    """Return, for each maximum depth, the best trees of up to `nodes` nodes as one list of paths.

    The acceptance of a child is assumed not to depend on its parent.
    """
    trees: list[Ranked] = []
    for depth in range(1, len(acceptance) + 1):
        rates, paths, width = acceptance[:depth], 0, 1
        for level in rates:
            width *= len(level)
            paths += width
        trees.append(best_tree(rates, min(nodes, paths)))
    return trees


def best_plan(trees: Sequence[Ranked], verify: CostCurve, draft: DraftCost, batch: int = 1, context: int = 512) -> Plan:
    """Return the best prefix of any list by tokens per second; a plan without paths if drafting does not pay.

    Args:
        trees: lists of paths. The first n paths of a list are a tree of n nodes.
        verify: cost of the target's forward.
        draft: cost of drafting.
        batch: rows.
        context: tokens of each row in the KV cache.
    """
    plain = verify.seconds(1, batch, context)
    best = Plan(batch, context, (), 1.0, plain, 0.0, plain)
    for paths, gains in trees:
        tokens = 1.0
        for size, gain in enumerate(gains, 1):
            tokens += gain
            drafting = draft.seconds(levels(paths[:size]), batch, context)
            seconds = verify.seconds(size + 1, batch, context) + drafting
            plan = Plan(batch, context, paths[:size], tokens, seconds, drafting, plain)
            best = max(best, plan, key=lambda p: p.speedup)
    return best


def levels(paths: Sequence[IndexPath]) -> list[int]:
    """Return the number of nodes at depth 1, 2, ..."""
    counts = Counter(map(len, paths))
    return [counts[depth] for depth in sorted(counts)]
