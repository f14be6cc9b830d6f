"""Forced acceptance: keep drafted tokens by prescribed draws, whatever the target says of them.

The rule is LOSSY, and more so than any other: the text is not the target's, nor meant to be. It serves to measure a
loop, a kernel or a server at any number of tokens per step and any temperature, with any drafter. The drafter `oracle`
does the same at temperature 0 with the target's own text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.decoding.protocols import Verdict
from specdec.decoding.sampling import Draws
from specdec.errors import InputError
from specdec.replay.prescribed import GivenRates, prescribed
from specdec.trees.tree import TokenTree
from verifiers.acceptance.rejection import Offers, at
from verifiers.acceptance.requirements import require_probabilities


class Forced:
    """Walk from the root. Of the current node's children keep that of rank r with probability `rates[depth][rank]`.

    The next token is drawn from p at the end of the path.

    Args:
        depth: levels that a schedule spans; deeper nodes are never kept.
        schedule: see `specdec.trees.schedules.scheduled`; it applies to first children.
        tokens_per_step: the average of the schedule, if drafts have that many levels.
        rates, lengths: replace the schedule, see `specdec.replay.prescribed`.

    Raises:
        InputError: an option out of range.
    """

    name = "forced"
    lossless = False

    def __init__(
        self,
        depth: int = 4,
        schedule: str = "constant",
        tokens_per_step: float = 3.0,
        rates: GivenRates = None,
        lengths: Sequence[float] | None = None,
    ) -> None:
        if depth < 1:
            raise InputError("acceptance.depth", expected="an integer >= 1", got=repr(depth), fix="raise it")
        chain = [(0,) * level for level in range(1, depth + 1)]
        options = {"rates": rates, "lengths": lengths, "where": "acceptance"}
        self.rates = prescribed(schedule, tokens_per_step, chain, **options)  # type: ignore[arg-type]
        ranks = max(map(len, self.rates))
        table = torch.tensor([level + [0.0] * (ranks - len(level)) for level in self.rates], dtype=torch.float64)
        before = table.cumsum(1) - table
        # chance of a child after its earlier siblings were not kept, by depth and rank; 0 beyond the table
        self._chances = torch.zeros(len(table) + 1, ranks + 1, dtype=torch.float64)
        self._chances[:-1, :-1] = (table / (1 - before).clamp(min=1e-12)).clamp(max=1)

    def accept(self, tree: TokenTree, target_probs: Float[Tensor, "batch nodes vocab"], draws: Draws) -> Verdict:
        require_probabilities(tree, target_probs, needs_q=False)
        chances = self._chances.to(target_probs.device)
        levels, ranks = ((size - 1) for size in chances.shape)
        rates = chances[(tree.depth - 1).clamp(min=0, max=levels), ranks_of(tree).clamp(max=ranks)]
        node = torch.zeros_like(tree.tokens[:, 0])
        offers = Offers(tree)
        for child in range(1, tree.nodes):
            if offers.nobody(child, node):
                continue
            offered = tree.valid[:, child] & (tree.parents[:, child] == node)
            kept = draws.bernoulli(torch.where(offered, rates[:, child], 0), child)
            node = torch.where(kept, child, node)
        return Verdict(tree.path_to(node), draws.categorical(at(target_probs, node), 0))


def ranks_of(tree: TokenTree) -> Int[Tensor, "batch nodes"]:
    """Return the number of earlier siblings of every node."""
    index = torch.arange(tree.nodes, device=tree.tokens.device)
    same = tree.parents[:, :, None] == tree.parents[:, None]
    return (same & (index[:, None] > index)).sum(-1)
