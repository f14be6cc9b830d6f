"""Token recycling keeps what the target said at every node, and drafts from it."""

from __future__ import annotations

import pytest
import torch

from drafters.token_recycling import TokenRecycling
from specdec.decoding.protocols import DraftState, Session, Verified
from specdec.decoding.sampling import SamplingParams, Streams
from specdec.errors import InputError
from specdec.model.target import TargetModel
from specdec.trees.tree import TokenTree
from tests.support.states import kept


def state(target: TargetModel, row: list[int], verified: Verified | None = None, room: int = 50) -> DraftState:
    return DraftState([row], kept([[0]]), [room], Streams([[0]], SamplingParams(), target.device), verified)


def said(tokens: list[int], parents: list[int], after: list[list[tuple[int, float]]]) -> Verified:
    top, probs = ([[[pair[i] for pair in pairs] for pairs in after]] for i in (0, 1))
    return Verified(TokenTree.from_rows([tokens], [parents]), torch.tensor(top), torch.tensor(probs))


def nodes(tree: TokenTree) -> tuple[list[int], list[int]]:
    return tree.tokens[0].tolist(), tree.parents[0].tolist()


def test_what_the_target_said_at_rejected_nodes_is_drafted(tiny: TargetModel) -> None:
    drafter = TokenRecycling(4, 2, 3)
    drafter.start(Session(tiny, [[1, 2]], SamplingParams(), 50))
    assert nodes(drafter.propose(state(tiny, [1, 2]))) == ([2], [-1])
    assert nodes(drafter.propose(state(tiny, [1, 2, 1]))) == ([1, 2], [-1, 0])  # 2 followed 1 in the prompt
    verified = said([2, 5, 6], [-1, 0, 0], [[(7, 0.6), (5, 0.3)], [(8, 0.9), (1, 0.1)], [(9, 0.5), (2, 0.4)]])
    tree = drafter.propose(state(tiny, [1, 2, 1, 5], verified))
    assert nodes(tree)[0][:2] == [5, 8]
    tree = drafter.propose(state(tiny, [1, 2, 1, 5, 2]))
    assert nodes(tree) == ([2, 7, 5, 8, 1], [-1, 0, 0, 2, 2])
    assert tree.confidence is not None
    assert tree.confidence[0].tolist() == pytest.approx([1, 0.6, 0.3, 0.9, 0.1])


def test_depth_room_and_nodes_bound_the_tree(tiny: TargetModel) -> None:
    loop = said([1], [-1], [[(1, 0.9), (2, 0.05)]])
    for options, room, depth in (((9, 2, 2), 50, 2), ((9, 2, 6), 3, 2), ((3, 2, 6), 50, 3)):
        drafter = TokenRecycling(*options)
        drafter.start(Session(tiny, [[1]], SamplingParams(), 50))
        assert int(drafter.propose(state(tiny, [1], loop, room)).offered) == depth


@pytest.mark.parametrize("learn", ["off", "online"])
def test_a_table_outlives_its_text_only_if_it_is_learnt(tiny: TargetModel, learn: str) -> None:
    drafter = TokenRecycling(4, 1, 3, learn=learn)
    session = Session(tiny, [[3]], SamplingParams(), 50)
    drafter.start(session)
    drafter.propose(state(tiny, [3], said([3], [-1], [[(4, 0.9)]])))
    drafter.start(session)
    assert nodes(drafter.propose(state(tiny, [3])))[0] == [3]
    drafter.propose(state(tiny, [3], said([3], [-1], [[(4, 0.9)]])))
    drafter.learn([[3, 4]])
    drafter.start(session)
    assert nodes(drafter.propose(state(tiny, [3])))[0] == ([3, 4] if learn == "online" else [3])
    assert drafter.traits.known_tokens == (1 if learn == "online" else None)


def test_options_out_of_range_are_one_line() -> None:
    for options in ({"nodes": 0}, {"candidates": 0}, {"depth": 0}, {"learn": "yes"}):
        with pytest.raises(InputError, match=f"drafter.{next(iter(options))}"):
            TokenRecycling(**{"nodes": 4, "candidates": 2, "depth": 3, **options})  # type: ignore[arg-type]
