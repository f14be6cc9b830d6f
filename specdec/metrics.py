"""Every metric, defined once. Tables, trackers, dashboards and the README import these definitions.

Counts of one step of one row:
    offered    depth of the deepest drafted node; if the text ended inside the block, cut at its end
    accepted   number of drafted tokens that were kept
    emitted    accepted + the one token that the target sampled after them, cut at the end of the text

Metrics over many steps:
    tokens per step, tau (MAT)   sum of emitted / steps; exactly 1.0 for plain autoregressive decoding
    acceptance length            tau - 1
    acceptance at depth d        P(accepted >= d, given accepted >= d - 1 and offered >= d)
    acceptance rate              sum of accepted / sum of offered (a chain: accepted / drafted)
    draft efficiency             sum of accepted / sum of drafted nodes (the root is not drafted)
    a node's frequency           times accepted / times offered
    a node's contribution        times accepted / steps; the sum over all nodes is accepted tokens per step
    bandwidth share              time of a plain read of as many bytes as the weights / time of the verify phase
    speedup                      tokens/s / tokens/s of our autoregressive loop, measured side by side

The prefill emits the first token of a text; that token belongs to no step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

PHASES = ("draft", "verify", "accept", "commit")


@dataclass(frozen=True)
class StepRecord:
    """One step of one row.

    Args:
        row: index of the row in its batch.
        step: index of the step.
        live: number of rows that were still generating.
        nodes: number of drafted nodes, the root not counted.
        offered, accepted, emitted: counts defined at the top of this module.
        path: kept nodes of the tree, root first.
        tokens: emitted token ids.
        ms: milliseconds of the whole batch's step by phase; every row of the step has the same value.
        parents: parent of each node, as in `TokenTree`; empty in runs of older versions, which did not record it.
    """

    row: int
    step: int
    live: int
    nodes: int
    offered: int
    accepted: int
    emitted: int
    path: list[int]
    tokens: list[int]
    ms: dict[str, float]
    parents: list[int] = field(default_factory=list)

    @property
    def closing(self) -> str | None:
        """Kind of the token after the accepted ones.

        "recovered" after a rejection, "bonus" after a path that was accepted to its leaf, "undrafted" if nothing was
        drafted, None if the text ended before this token.
        """
        if self.emitted == self.accepted:
            return None
        if not self.nodes:
            return "undrafted"
        rejected = self.path[-1] in self.parents if self.parents else self.accepted < self.offered
        return "recovered" if rejected else "bonus"


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a set of step records. A ratio is None if its denominator is 0.

    Args:
        tokens: tokens emitted by all steps.
        steps: number of steps, over all rows.
        tokens_per_step, acceptance_length, acceptance_rate, draft_efficiency: defined at the top of this module.
        acceptance_at_depth: entry d - 1 is the acceptance at depth d.
        nodes_per_step: mean number of drafted nodes per step and row.
        emitted_histogram: entry n - 1 counts the steps that emitted n tokens.
        phase_ms: mean milliseconds per step of the batch, by phase.
    """

    tokens: int
    steps: int
    tokens_per_step: float | None
    acceptance_length: float | None
    acceptance_rate: float | None
    acceptance_at_depth: list[float]
    draft_efficiency: float | None
    nodes_per_step: float | None
    emitted_histogram: list[int]
    phase_ms: dict[str, float]

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> StepMetrics:
        emitted, accepted = sum(r.emitted for r in records), sum(r.accepted for r in records)
        tau = _ratio(emitted, len(records))
        return cls(
            tokens=emitted,
            steps=len(records),
            tokens_per_step=tau,
            acceptance_length=None if tau is None else tau - 1,
            acceptance_rate=_ratio(accepted, sum(r.offered for r in records)),
            acceptance_at_depth=acceptance_at_depth(records),
            draft_efficiency=_ratio(accepted, sum(r.nodes for r in records)),
            nodes_per_step=_ratio(sum(r.nodes for r in records), len(records)),
            emitted_histogram=emitted_histogram(records),
            phase_ms=phase_ms(records),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def acceptance_at_depth(records: Sequence[StepRecord]) -> list[float]:
    """Return acceptance at depths 1, 2, ..., down to the last depth that was tried.

    Entry d - 1 is P(accepted >= d | accepted >= d - 1, offered >= d).
    """
    rates = []
    for depth in range(1, max((r.offered for r in records), default=0) + 1):
        tried = [r for r in records if r.offered >= depth and r.accepted >= depth - 1]
        if not tried:
            break
        rates.append(sum(r.accepted >= depth for r in tried) / len(tried))
    return rates


def emitted_histogram(records: Sequence[StepRecord]) -> list[int]:
    counts = Counter(r.emitted for r in records)
    return [counts[n] for n in range(1, max(counts, default=0) + 1)]


@dataclass(frozen=True)
class NodeUse:
    """How often the node at one position of the drafted trees was offered and accepted.

    Args:
        place: index of the child taken at each depth, in the order of the nodes: (0, 1) is the second child of the
            first child of the root, in every tree.
        offered: number of steps that drafted this node before the end of the text.
        accepted: number of steps that kept it.
        frequency: accepted / offered.
        contribution: accepted / steps.
    """

    place: tuple[int, ...]
    offered: int
    accepted: int
    frequency: float
    contribution: float


def tree_use(records: Sequence[StepRecord]) -> list[NodeUse]:
    """Return the use of every position at which a node was offered: parents before children, siblings in order.

    Nodes past the end of a text do not count as offered.
    """
    offered: Counter[tuple[int, ...]] = Counter()
    accepted: Counter[tuple[int, ...]] = Counter()
    alike = Counter((tuple(r.parents), tuple(r.path), r.offered) for r in records)  # equal trees are counted once
    for (parents, path, depth), times in alike.items():
        places = _places(parents)
        for node, place in places.items():
            if 0 < len(place) <= depth:
                offered[place] += times
                accepted[place] += times * (node in path)
    order = sorted(offered, key=lambda place: (len(place), place))
    return [NodeUse(p, offered[p], accepted[p], accepted[p] / offered[p], accepted[p] / len(records)) for p in order]


def _places(parents: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the position (`NodeUse.place`) of each node that is not padding; () for the root."""
    places: dict[int, tuple[int, ...]] = {0: ()}
    children: Counter[int] = Counter()
    for node, parent in enumerate(parents):
        if parent >= 0:
            places[node] = (*places[parent], children[parent])
            children[parent] += 1
    return places


@dataclass(frozen=True)
class Stretch:
    """Speed of the steps that began in one section of their texts.

    Args:
        first, last: the section; numbers of new tokens before a step, both included.
        steps: number of steps, over all rows.
        tokens_per_step: tau of these steps.
        tokens_per_second: emitted tokens / time of these steps; the rows of a batch share its time.
    """

    first: int
    last: int
    steps: int
    tokens_per_step: float
    tokens_per_second: float


def along_text(texts: Iterable[Sequence[StepRecord]], stretches: int = 16) -> list[Stretch]:
    """Return the decoding speed along the texts, from beginning to end; prefill is left out.

    Args:
        texts: the step records of each text, in order.
        stretches: largest number of sections; all are equally wide. Sections without steps are left out.
    """
    rows = []
    for records in texts:
        before = 1  # the first token comes from the prompt's forward
        for r in records:
            rows.append((before, r.emitted, sum(r.ms.values()) / r.live))
            before += r.emitted
    if not rows:
        return []
    width = -(-(max(before for before, _, _ in rows) + 1) // stretches)
    data = np.array(rows, dtype=np.float64)
    bins = (data[:, 0] // width).astype(int)
    steps, tokens, ms = (np.bincount(bins, weights) for weights in (None, data[:, 1], data[:, 2]))
    return [
        Stretch(b * width, (b + 1) * width - 1, int(steps[b]), tokens[b] / steps[b], 1e3 * tokens[b] / ms[b])
        for b in np.flatnonzero(steps).tolist()
    ]


def phase_ms(records: Sequence[StepRecord]) -> dict[str, float]:
    """Return mean milliseconds per step of the batch, by phase; a step with several live rows counts once."""
    steps = sum(1 / r.live for r in records)
    return {p: sum(r.ms[p] / r.live for r in records) / steps if steps else 0.0 for p in PHASES}


def bandwidth_share(read_ms: float, verify_ms: float) -> float | None:
    return _ratio(read_ms, verify_ms)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
