"""Which tree pays where: expected tokens per step against the time of a step. Knows cost curves, no model.

The expectation is Medusa's and Sequoia's (arXiv 2401.10774, 2402.12374): a node is accepted with the product of the
acceptances on its path. Acceptances are taken as given and as independent of batch, context and machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from specdec.errors import InputError
from specdec.hardware.curves import CostCurve, DraftCost
from specdec.trees.topology import Path, best_tree

Acceptance = Sequence[Sequence[float]]  # [depth][rank]: P(that child is right, given that its parent was)
Ranked = tuple[Sequence[Path], Sequence[float]]  # paths, best first, and what each adds to the tokens of a step


@dataclass(frozen=True)
class Plan:
    """The best tree at a point; no paths: nothing pays, and a step is plain decoding. levels: nodes at depth 1, 2, ...;
    seconds: of a step, of which `draft_seconds` are drafting; plain_seconds: of a step that drafts nothing."""

    batch: int
    context: int
    paths: Sequence[Path]
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
        """Of all rows together."""
        return self.batch * self.tokens_per_step / self.seconds

    @property
    def plain_tokens_per_second(self) -> float:
        return self.batch / self.plain_seconds


@dataclass(frozen=True)
class Planner:
    """acceptance: see `Acceptance`; verify: the target's curve; most_nodes: drafted, in the largest tree.

    Raises:
        InputError: no acceptances, or some that are no probabilities or add up to more than 1 among siblings.
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
        """The tree with the most tokens per second among those that are best for their size and depth."""
        return best_plan(self._trees, self.verify, self.draft, batch, context)


def independent(acceptance: Acceptance, nodes: int) -> list[Ranked]:
    """For each limit on the depth, the best trees up to `nodes`, were a child right as often under every parent."""
    trees: list[Ranked] = []
    for depth in range(1, len(acceptance) + 1):
        rates, paths, width = acceptance[:depth], 0, 1
        for level in rates:
            width *= len(level)
            paths += width
        trees.append(best_tree(rates, min(nodes, paths)))
    return trees


def best_plan(trees: Sequence[Ranked], verify: CostCurve, draft: DraftCost, batch: int = 1, context: int = 512) -> Plan:
    """Of all beginnings of all lists the one with the most tokens per second; no paths where nothing pays."""
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


def levels(paths: Sequence[Path]) -> list[int]:
    """Nodes at depth 1, 2, ..."""
    counts = Counter(map(len, paths))
    return [counts[depth] for depth in sorted(counts)]
