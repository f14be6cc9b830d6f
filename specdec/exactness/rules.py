"""Proof of an acceptance rule. It assumes nothing about the rule but its declaration (`exact_for`).

- Every random outcome is enumerated on trees of each declared kind, in batches and row by row.
- At temperature 0 the rule is compared with `greedy_verdict`, which the loop uses in its place.
- The rule must refuse all trees that it does not declare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specdec.decoding.generate import Outcome, greedy_verdict
from specdec.decoding.grow_fixed import CHILDREN
from specdec.decoding.protocols import AcceptanceRule, Scores, Verdict, exact_for
from specdec.decoding.sampling import Draws, GreedyDraws, SamplingParams
from specdec.errors import InputError
from specdec.exactness.cases import KINDS, tables
from specdec.exactness.enumeration import (
    EnumeratedDraws,
    Enumeration,
    draft,
    emission,
    require_path,
    scored,
    shape_of,
)
from specdec.exactness.finding import EXACT, Finding, in_words, require_passed
from specdec.trees.tree import TokenTree

Shape = tuple[int, tuple[int, ...]]  # vocabulary, children per node at each depth
CHAINS: tuple[Shape, ...] = ((3, (1,)), (2, (1, 1)), (5, (1, 1)), (2, (1, 1, 1)), (3, (1, 1, 1)))
TREES: tuple[Shape, ...] = (
    (5, (2,)), (4, (2, 1)), (3, (1, 2)), (3, (3, 1)), (2, (2, 2)), (2, (2, 1, 1)), (2, (1, 1, 2)),
)  # fmt: skip
FEW_KINDS = ("random", "sparse", "mirrored")
QUICK_KINDS, QUICK_CHAINS, QUICK_TREES = ("random", "mirrored"), ((2, (1, 1)),), ((3, (2, 1)),)
SMALL = 3, (1, 1), (2,)  # vocabulary, a chain, a tree: for checks that call a rule often
GREEDY_TREES = 64


def prove_rule(rule: AcceptanceRule, quick: bool = False) -> list[Finding]:
    """Check everything that a rule declares. A lossy rule declares nothing.

    Args:
        rule: the rule under test.
        quick: use some of the cases only (about 0.2 s), for a check before a run.

    Raises:
        InputError: a lossless rule that does not declare its trees.
    """
    if not rule.lossless:
        return []
    declared = exact_for(rule)
    kinds = QUICK_KINDS if quick else KINDS
    chains, trees = (QUICK_CHAINS, QUICK_TREES) if quick else (CHAINS, TREES)
    shapes = (*chains, *(trees if declared.siblings else ()))
    vocab, *small = SMALL
    few = [(vocab, widths) for widths in small if declared.siblings or max(widths) == 1]
    findings = []
    for how in declared.children:
        findings.append(_enumerated(rule, how, kinds, shapes))
        findings.append(_enumerated(RowByRow(rule), how, QUICK_KINDS[:1] if quick else FEW_KINDS, few))
    widths = [widths for _, widths in shapes]
    return [*findings, _greedy(rule, widths), _greedy(rule, widths, padded=True), _refusals(rule)]


def require_proven(rule: AcceptanceRule) -> None:
    """Check a rule quickly before it is used.

    Raises:
        InputError: it is declared lossless but is not.
    """
    expected = "the target's distribution, as lossless = True declares"
    require_passed(f"acceptance={rule.name}", expected, prove_rule(rule, quick=True))


def require_greedy(rule: AcceptanceRule, tree: TokenTree, scores: Scores) -> None:
    """Compare a lossless rule with `greedy_verdict`, which the loop uses in its place at temperature 0.

    Raises:
        InputError: names the rule, and both texts of the first row in which they differ.
    """
    asked, kept = (
        Outcome.read(tree, verdict).blocks
        for verdict in (rule.accept(tree, scores.probs, GreedyDraws()), greedy_verdict(tree, scores))
    )
    for ours, right in zip(asked, kept, strict=True):
        if ours != right:
            raise InputError(
                f"acceptance={rule.name}",
                expected=f"the target's greedy tokens {right} at temperature 0",
                got=str(ours),
                fix="mend the rule, or declare lossless = False",
            )


def _enumerated(rule: AcceptanceRule, how: str, kinds: Sequence[str], shapes: Sequence[Shape]) -> Finding:
    """Compare the emitted tokens' joint distribution with the target's, and report the largest difference of all cases.

    Args:
        rule: the rule under test.
        how: how children are chosen.
        kinds: kinds of p and q.
        shapes: shapes of trees.
    """
    by = ", asked row by row" if isinstance(rule, RowByRow) else ""
    what = f"children {how}, {len(kinds)} kinds of p and q, {len(shapes)} shapes{by}"
    count, worst, failure = 0, 0.0, ""
    for kind, (vocab, widths) in _cases(kinds, shapes, how):
        p, q = tables(kind, vocab, len(widths), seed=len(widths))
        where = f"with {vocab} tokens, widths {list(widths)}, {kind} p and q"
        try:
            emitted = emission(rule, widths, p, q, how)
        except Exception as error:
            return Finding(what, count, worst, failure=f"{in_words(error)}, {where}")
        apart = float((emitted.joint - p.joint()).abs().nan_to_num(nan=1.0).max())
        count += emitted.outcomes
        if apart > max(worst, EXACT):
            failure = f"a probability that is {apart:.2g} off {where}"
        worst = max(worst, apart)
    return Finding(what, count, worst, failure=failure)


def _cases(kinds: Sequence[str], shapes: Sequence[Shape], how: str) -> Iterator[tuple[str, Shape]]:
    """Yield small shapes first, so that the first failing case is easy to follow."""
    for vocab, widths in shapes:
        if how == "top_k" and max(widths) > vocab:
            continue
        for kind in kinds:
            yield kind, (vocab, widths)


def _greedy(rule: AcceptanceRule, shapes: Sequence[tuple[int, ...]], padded: bool = False) -> Finding:
    """Check that a rule keeps the greedy tokens at temperature 0, where p is one-hot and every lossless rule keeps the
    same tokens, whatever q is.

    padded: cut the rows to different depths, as happens at the end of a text.
    """
    what, seen = f"temperature 0, against the greedy verdict{', with padding' if padded else ''}", 0
    generator = torch.Generator().manual_seed(0)
    for widths, how in ((widths, how) for widths in shapes for how in exact_for(rule).children):
        parents, vocab = shape_of(widths), 5
        logits, q = torch.randn(2, GREEDY_TREES, len(parents), vocab, generator=generator, dtype=torch.float64)
        scores = Scores(logits, torch.zeros(*logits.shape[:2], 1), SamplingParams())
        tree = _ranked(parents, how, q.softmax(-1))
        depths = torch.arange(GREEDY_TREES) % (len(widths) + 1)
        seen += GREEDY_TREES
        try:
            require_greedy(rule, tree.clip(depths) if padded else tree, scores)
        except Exception as error:
            return Finding(what, seen, failure=f"{in_words(error)}, with widths {list(widths)}, children {how}")
    return Finding(what, seen)


def _ranked(parents: Sequence[int], how: str, q: Tensor) -> TokenTree:
    """Build trees of one shape in which each node's children are the most likely tokens under q [rows nodes vocab]."""
    tokens = torch.zeros(q.shape[:2], dtype=torch.long)
    for node in range(len(parents)):
        children = [child for child, parent in enumerate(parents) if parent == node]
        if children:
            tokens[:, children] = q[:, node].topk(len(children)).indices
    probs = None if how == "top_k" else q
    return TokenTree(tokens, torch.tensor(parents).expand_as(tokens).clone(), probs, how != "without_replacement")


def _refusals(rule: AcceptanceRule) -> Finding:
    """Check that a rule refuses trees that it does not declare, because on those its text would be silently wrong."""
    declared, refused = exact_for(rule), []
    undeclared = [(how, (2,)) for how in CHILDREN if how not in declared.children]
    if not declared.siblings:  # for an only child, drawing with and without replacement are the same
        undeclared = [(declared.children[0], (2,))]
    p, q = tables("random", 3, 2, seed=0)
    for how, widths in undeclared:
        name = f"children {how}" if declared.siblings else "several children of a node"
        parents = shape_of(widths)
        drafting, accepting = (EnumeratedDraws.of(Enumeration.begin(1, len(parents))) for _ in range(2))
        tree = draft(parents, q, how, drafting, 1)
        try:
            rule.accept(tree, scored(tree, parents, p), accepting)
        except InputError:
            refused.append(name)
            continue
        except Exception as error:
            got = in_words(error)
        else:
            got = "a verdict"
        failure = f"{got} instead of a refusal of {name}: call require_exact_for(self, tree)"
        return Finding("refuses trees that it does not declare", len(refused), failure=failure)
    what = f"refuses {' and '.join(refused)}" if refused else "takes every tree"
    return Finding(what, len(refused))


class RowByRow:
    """A rule that is called for one row at a time, because some rules have a faster path for a batch of one."""

    def __init__(self, rule: AcceptanceRule) -> None:
        self.rule, self.name, self.lossless = rule, rule.name, rule.lossless

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Draws) -> Verdict:
        assert isinstance(draws, EnumeratedDraws)
        whole, verdicts = draws.enumeration, []
        for row in range(tree.batch):
            mine = slice(row, row + 1)
            q = None if tree.probs is None else tree.probs[mine]
            alone = TokenTree(tree.tokens[mine], tree.parents[mine], q, tree.replacement)
            own = Enumeration(whole.script[mine], whole.weight[mine])
            verdicts.append(self.rule.accept(alone, target_probs[mine], EnumeratedDraws.of(own)))
            require_path(self.rule, alone, verdicts[-1])
            whole.adopt(row, own)
        return Verdict(torch.cat([v.path for v in verdicts]), torch.cat([v.next_token for v in verdicts]))
