"""The conformance suite: one rule on a growing family of distributions, trees and texts, smallest first.

Every random outcome is enumerated. A rule that is not exact is reported with the smallest case in which a text comes
with another probability than the target gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch

from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import AcceptanceRule, ExactFor, exact_for
from specdec.errors import InputError
from specdec.exactness.cases import KINDS, tables
from specdec.exactness.enumeration import Blocks, Emission, Tables, blocks_of
from specdec.exactness.faults import Watched
from specdec.exactness.finding import EXACT, in_words
from specdec.exactness.functions import FunctionRule
from specdec.exactness.shapes import chain, depth_of, parents_of, shapes
from specdec.exactness.transport import tree_bound

FEW, WATCHED = 3, 2  # up to FEW drafted nodes all kinds of p and q are tried, up to WATCHED each call is repeated
KINDS_OF_LARGER = ("random",)  # generic p and q: a rule that errs on any, errs on them
BOUNDED = 3  # largest number of drafted nodes for which the bound of a tree is computed, for FEW_KINDS
FEW_KINDS = ("mirrored", "random")
TEXT = 4  # tokens of the texts that several steps write


@dataclass(frozen=True)
class Case:
    """One enumeration.

    Args:
        how: how children are chosen.
        parents: parents of the tree's nodes, level by level.
        vocab: number of tokens.
        kind: kind of p and q, see `specdec.exactness.cases`.
        steps: whether steps are repeated until the text has `TEXT` tokens; else one step.
    """

    how: str
    parents: tuple[int, ...]
    vocab: int
    kind: str
    steps: bool = False

    @property
    def nodes(self) -> int:
        return len(self.parents) - 1

    @property
    def depth(self) -> int:
        return depth_of(list(self.parents))

    @property
    def is_chain(self) -> bool:
        return list(self.parents) == chain(self.nodes)

    def tables(self) -> tuple[Tables, Tables]:
        if self.steps:
            p, q = tables(self.kind, self.vocab, TEXT, seed=TEXT)
            return Tables(p.levels[:TEXT]), q
        return tables(self.kind, self.vocab, self.depth, seed=self.depth)

    def __str__(self) -> str:
        tree = f"a chain of {self.nodes}" if self.is_chain else f"a tree with parents {list(self.parents)}"
        text = f", texts of {TEXT} tokens" if self.steps else ""
        return f"{tree}, children {self.how}, {self.vocab} tokens, {self.kind} p and q{text}"


@dataclass(frozen=True)
class Outcome:
    """The result of one case.

    Args:
        case: the case.
        outcomes: number of random outcomes.
        difference: largest difference of a text's probability from the target's.
        variation: total-variation distance of the texts' distributions.
        accepted: expected accepted tokens of one step; None for texts.
        bound: the most that any rule could accept; None if not computed.
        worst: the text with the largest difference, its probability, and the target's.
    """

    case: Case
    outcomes: int
    difference: float
    variation: float
    accepted: float | None
    bound: float | None
    worst: tuple[tuple[int, ...], float, float]

    @property
    def exact(self) -> bool:
        return self.difference <= EXACT

    def __str__(self) -> str:
        text, got, right = self.worst
        p, q = self.case.tables()
        first = f"p = {_row(p.levels[0][0])}, q = {_row(q.levels[0][0])} after the prompt"
        return (
            f"{self.case}; {first}: {text} comes with {_number(got)} instead of {_number(right)} "
            f"(total variation {self.variation:.4g})"
        )


@dataclass
class Report:
    """All results about one rule.

    Args:
        name: its name.
        outcomes: results in the order of the cases.
        failure: why the rule cannot be judged; empty if it can.
    """

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    failure: str = ""

    @property
    def exact(self) -> bool:
        return not self.failure and bool(self.outcomes) and all(one.exact for one in self.outcomes)

    @property
    def counterexample(self) -> Outcome | None:
        """The smallest case that is not exact."""
        return next((one for one in self.outcomes if not one.exact), None)

    @property
    def variation(self) -> float:
        return max((one.variation for one in self.outcomes), default=0.0)


def cases(declared: ExactFor, nodes: int, depth: int, vocabularies: Sequence[int]) -> Iterator[Case]:
    """Yield the cases of a rule, by number of drafted nodes.

    Args:
        declared: the trees that the rule judges.
        nodes: largest number of drafted nodes of a tree.
        depth: largest depth of a chain.
        vocabularies: numbers of tokens; 2 is added for the smallest trees.
    """
    for size in range(1, max(nodes, depth) + 1):
        found = [parents_of(shape) for shape in shapes(size)] if declared.siblings and size <= nodes else []
        if size <= depth and chain(size) not in found:
            found.append(chain(size))
        found = [parents for parents in found if parents != chain(size) or size <= depth or declared.siblings]
        small = size <= FEW
        for vocab in sorted({*vocabularies, *([2] if small else [])}):
            for parents in sorted(found, key=depth_of, reverse=True):
                widest = max(parents.count(node) for node in range(size + 1))
                for kind in ("mirrored", *(k for k in KINDS if k != "mirrored")) if small else KINDS_OF_LARGER:
                    for how in declared.children:
                        if how == "top_k" and widest > vocab:
                            continue
                        yield Case(how, tuple(parents), vocab, kind)
                        if size == 2 and vocab == 2 and kind in ("mirrored", "random"):
                            yield Case(how, tuple(parents), vocab, kind, steps=True)


def check(
    rule: AcceptanceRule | FunctionRule,
    nodes: int = 6,
    depth: int = 4,
    vocabularies: Sequence[int] = (3, 4),
    on_case: Callable[[Outcome], None] = lambda _: None,
) -> Report:
    """Run the suite. After a case that is not exact, only cases of the same size follow.

    Args:
        rule: the rule, or a function as a rule. A lossy rule without `exact_for` is measured on every kind of tree.
        nodes, depth, vocabularies: as in `cases`.
        on_case: called with each result.
    """
    if isinstance(rule, FunctionRule):
        declared = rule.exact_for
    else:
        declared = exact_for(rule) if rule.lossless else getattr(rule, "exact_for", ExactFor(CHILDREN))
    report, stop_after = Report(rule.name), 10**9
    for case in cases(declared, nodes, depth, vocabularies):
        if case.nodes > stop_after:
            break
        try:
            outcome = judged(rule, case)
        except InputError as error:
            known = str(error).removeprefix(f"acceptance={rule.name}: ").removeprefix(f"{rule.name}: ")
            report.failure = f"{known}, with {case}"
            return report
        except Exception as error:
            report.failure = f"it raises {in_words(error)}, with {case}"
            return report
        report.outcomes.append(outcome)
        on_case(outcome)
        if not outcome.exact and rule.lossless:
            stop_after = case.nodes
    return report


def judged(rule: AcceptanceRule | FunctionRule, case: Case) -> Outcome:
    """Enumerate one case.

    Raises:
        InputError: the rule does what no rule may do.
    """
    p, q = case.tables()
    watch = case.nodes <= WATCHED and case.kind in FEW_KINDS and not case.steps
    watched = Watched(rule) if watch and not isinstance(rule, FunctionRule) else rule

    def blocks(parents: Sequence[int], p: Tables, q: Tables) -> Blocks:
        if isinstance(watched, FunctionRule):
            return watched.blocks(parents, p, q, case.how)
        return blocks_of(watched, parents, p, q, case.how)

    emission = written(blocks, case.parents, p, q) if case.steps else blocks(case.parents, p, q).completed(p)
    right = p.joint()
    apart = (emission.joint - right).abs().nan_to_num(nan=1.0)
    worst = int(apart.argmax())
    text = tuple(worst // p.vocab ** (len(p.levels) - 1 - i) % p.vocab for i in range(len(p.levels)))
    bounded = case.nodes <= BOUNDED and case.kind in FEW_KINDS and not case.steps
    bound = tree_bound(case.parents, p, q, case.how) if bounded else None
    return Outcome(
        case=case,
        outcomes=emission.outcomes,
        difference=float(apart.max()),
        variation=float(apart.sum()) / 2,
        accepted=None if case.steps else emission.accepted,
        bound=bound,
        worst=(text, float(emission.joint[worst]), float(right[worst])),
    )


def written(
    blocks: Callable[[Sequence[int], Tables, Tables], Blocks], parents: Sequence[int], p: Tables, q: Tables
) -> Emission:
    """Return the distribution of texts that several steps write, each behind what the earlier ones wrote.

    Args:
        blocks: enumerates the blocks of one step.
        parents: parents of the tree's nodes; nodes that the end of the text leaves no room for are cut.
        p, q: distributions after every prefix of a text.
    """
    vocab, tokens, outcomes, accepted = p.vocab, len(p.levels), 0, 0.0
    mass = [torch.zeros(vocab**length, dtype=torch.float64) for length in range(tokens + 1)]
    mass[0][0] = 1.0
    for length in range(tokens):
        depths = [0]
        for parent in parents[1:]:
            depths.append(depths[parent] + 1)
        kept = [parent for parent, depth in zip(parents, depths, strict=True) if depth < tokens - length]
        for prefix in mass[length].nonzero()[:, 0].tolist():
            here = [_behind(table, prefix, length) for table in (p, q)]
            found = blocks(kept, *here)
            outcomes += sum(map(len, found.weights))
            for text, weight in zip(found.texts, found.weights, strict=True):
                number = torch.full((len(text),), prefix)
                for token in text.unbind(1):
                    number = number * vocab + token
                mass[length + text.shape[1]].index_add_(0, number, weight * mass[length][prefix])
                accepted += float(weight.sum()) * (text.shape[1] - 1) * float(mass[length][prefix])
    return Emission(mass[tokens], accepted, outcomes)


def _behind(table: Tables, prefix: int, length: int) -> Tables:
    """Return the distributions behind one prefix of that length."""
    levels = enumerate(table.levels[length:])
    return Tables([level[prefix * table.vocab**d : (prefix + 1) * table.vocab**d] for d, level in levels])


def _number(value: float) -> str:
    """Show a probability as a fraction if it is one with a small denominator."""
    near = Fraction(value).limit_denominator(1000)
    return str(near) if abs(float(near) - value) < 1e-12 else f"{value:.6g}"


def _row(values: torch.Tensor) -> str:
    return "(" + ", ".join(map(_number, values.tolist())) + ")"
