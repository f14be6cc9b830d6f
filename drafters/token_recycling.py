"""Draft from what the target said before: after each token, its most likely next tokens (arXiv 2408.08696).

Every verify scores nodes that are then rejected. What the target would have said there is kept: a table maps a token to
the most likely tokens after it, as of the last time it was verified. The tree of the most probable paths through the
table is drafted. No training, no second model, no forward.

    table   the -> cat .6, dog .2        the ( cat .6 ( sat .5 ( on .2 ) ), dog .2 )
            cat -> sat .8, ran .1
            sat -> on .4
"""

from __future__ import annotations

from collections.abc import Sequence

from drafters.shared.best_first import Follower, best_first
from specdec.decoding.protocols import DraftState, Session, Traits, Verified
from specdec.errors import InputError
from specdec.trees.tree import TokenTree


class TokenRecycling:
    """Draft the most probable paths through the table of the target's own next tokens.

    The paper drafts a fixed tree of 80 nodes by rank; here the target's probabilities choose the nodes, so that any
    number makes a good tree.

    Args:
        nodes: drafted nodes per row, the root not counted.
        candidates: tokens kept per entry of the table.
        depth: largest depth of the tree.
        learn: `off` forgets the table before every batch, and each row has its own; `online` keeps one for all rows and
            batches, as the paper does. Then texts depend on earlier ones in time, not in content.

    Raises:
        InputError: a number below 1, or another `learn`.
    """

    def __init__(self, nodes: int, candidates: int, depth: int, learn: str = "off") -> None:
        for name, value in {"nodes": nodes, "candidates": candidates, "depth": depth}.items():
            if value < 1:
                raise InputError(f"drafter.{name}", expected="an integer >= 1", got=value, fix="raise it")
        if learn not in ("off", "online"):
            raise InputError("drafter.learn", expected="off or online", got=repr(learn), fix="choose one")
        self.nodes, self.depth, self._online = nodes, depth, learn == "online"
        self.traits = Traits(remembers=True, top_k=candidates)
        self._shared: _Table = {}

    @property
    def max_nodes(self) -> int:
        return self.nodes + 1

    def start(self, session: Session) -> None:
        self._device = session.target.device
        self._tables: list[_Table] = [self._shared if self._online else {} for _ in session.rows]
        for table, row in zip(self._tables, session.rows, strict=True):
            _read_prompt(table, row)

    def propose(self, state: DraftState) -> TokenTree:
        if state.verified is not None:
            _read(self._tables, state.verified)
        trees = []
        for table, row, room in zip(self._tables, state.rows, state.room, strict=True):
            depth = min(self.depth, room - 1)

            def followers(token: int, at: int, table: _Table = table, depth: int = depth) -> list[Follower[int]]:
                return [(to, sure, to) for to, sure in table.get(token, ())] if at < depth else []

            trees.append(best_first(row[-1], [row[-1]], followers, self.nodes))
        tokens, parents, confidence = zip(*trees, strict=True)
        return TokenTree.from_rows(tokens, parents, self._device, confidence)


_Table = dict[int, list[tuple[int, float]]]  # token -> (next token, its probability), best first

PROMPT = 0.25  # probability of a token that followed in the prompt, until the target has said what follows


def _read_prompt(table: _Table, row: Sequence[int]) -> None:
    """Enter what followed each token of a prompt, the latest time. The target's own word replaces it."""
    for token, follower in zip(row, row[1:], strict=False):
        table[token] = [(follower, PROMPT)]


def _read(tables: Sequence[_Table], verified: Verified) -> None:
    """Enter what the target said after every node. If a token stands at several nodes, the last counts."""
    parts = (verified.tree.tokens, verified.tokens, verified.probs)
    for table, nodes, tops, probs in zip(tables, *(part.tolist() for part in parts), strict=True):
        for token, top, sure in zip(nodes, tops, probs, strict=True):
            if token >= 0:
                table[token] = list(zip(top, sure, strict=True))
