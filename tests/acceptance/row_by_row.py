"""A rule asked about one row at a time, under enumeration: proves the code of a batch of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.enumeration import Enumeration
from specdec.protocols import AcceptanceRule, Verdict
from specdec.tree import TokenTree


@dataclass(frozen=True)
class RowByRow:
    """A rule that is asked about one row at a time."""

    rule: AcceptanceRule
    lossless = True

    @property
    def name(self) -> str:
        return self.rule.name

    def accept(self, tree: TokenTree, target_probs: Tensor, draws: Enumeration) -> Verdict:
        verdicts = []
        for row in range(tree.batch):
            mine = slice(row, row + 1)
            q = None if tree.probs is None else tree.probs[mine]
            alone = TokenTree(tree.tokens[mine], tree.parents[mine], q, tree.replacement)
            own = Enumeration(draws.script[mine], draws.weight[mine])
            verdicts.append(self.rule.accept(alone, target_probs[mine], own))
            draws.weight[row] = own.weight[0]
            draws.forks += [(fork + row, history) for fork, history in own.forks]
        return Verdict(torch.cat([v.path for v in verdicts]), torch.cat([v.next_token for v in verdicts]))
