"""Check every requirement on a proposed tree, for new drafters and runs with `validate=true`. Waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

from specdec.decoding.checks import TOTAL_TOLERANCE, require_q
from specdec.decoding.protocols import Drafter
from specdec.errors import InputError
from specdec.trees.tree import TokenTree

SILENT = -1.0  # confidence of a node for which the drafter gives none


def require_valid(tree: TokenTree, drafter: Drafter, rows: Sequence[Sequence[int]], step: int, vocab_size: int) -> None:
    """Check a tree that a drafter proposed.

    Args:
        tree: the proposal.
        drafter: the drafter, for its `max_nodes` and its name.
        rows: committed tokens of each row, the root last.
        step: number of the step, counted from 0.
        vocab_size: number of tokens of the target.

    Raises:
        InputError: names the drafter, the step, and the first requirement that is broken.
    """
    try:
        _require_size(tree, drafter.max_nodes, len(rows))
        tree.validate(vocab_size)
        _require_roots(tree, rows)
        if tree.probs is not None:
            require_q(tree, tree.probs, vocab_size)
            _require_siblings(tree)
        _require_confidence(tree)
    except InputError as error:
        raise error.within(f"drafter {type(drafter).__name__}, step {step}") from error


def _require_size(tree: TokenTree, most: int, rows: int) -> None:
    fix = "raise max_nodes or propose fewer: the cache is sized by it"
    if tree.nodes > most:
        raise InputError(
            "tree", expected=f"at most max_nodes = {most} nodes, the root included", got=tree.nodes, fix=fix
        )
    if tree.batch != rows:
        fix = "propose a tree for every row, finished rows too"
        raise InputError("tree", expected=f"{rows} rows", got=tree.batch, fix=fix)


def _require_roots(tree: TokenTree, rows: Sequence[Sequence[int]]) -> None:
    for row, (root, tokens) in enumerate(zip(tree.tokens[:, 0].tolist(), rows, strict=True)):
        if root != tokens[-1]:
            expected, fix = (
                f"token {tokens[-1]}, the last committed one, as the root of row {row}",
                "begin with row[-1]",
            )
            raise InputError("tree", expected=expected, got=root, fix=fix)


def _require_siblings(tree: TokenTree) -> None:
    """Refuse a token drawn twice without replacement."""
    if tree.replacement:
        return
    same = (tree.tokens[:, :, None] == tree.tokens[:, None]) & (tree.parents[:, :, None] == tree.parents[:, None])
    twice = (same & tree.valid[:, :, None]).tril(-1).any(-1)
    if bool(twice.any()):
        row, node = twice.nonzero()[0].tolist()
        expected, got = "siblings with different tokens, as replacement=False says", f"a repeated one at node {node}"
        fix = "draw them with draw_without_replacement"
        raise InputError("tree", expected=expected, got=f"{got} of row {row}", fix=fix)


def _require_confidence(tree: TokenTree) -> None:
    if tree.confidence is None:
        return
    sure = tree.confidence
    if sure.shape != tree.tokens.shape:
        expected, fix = f"confidence of shape {tuple(tree.tokens.shape)}", "give one number for each node"
        raise InputError("tree", expected=expected, got=tuple(sure.shape), fix=fix)
    within = (sure >= 0) & (sure <= 1 + TOTAL_TOLERANCE)
    bad = tree.valid & ~within & (sure != SILENT)
    if bool(bad.any()):
        row, node = bad.nonzero()[0].tolist()
        got = f"{float(sure[row, node]):.4g} at node {node} of row {row}"
        fix = "return P(right | parent right), or -1 if it is not known"
        raise InputError("tree", expected="confidence in [0, 1]", got=got, fix=fix)
